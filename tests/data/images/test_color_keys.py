"""Transparency by a colour key or a palette, at each depth that PNG has."""

import struct
import zlib

import numpy as np
import pytest
from broken_pictures import chunk, png
from PIL import Image

from clipjax.data import decode_image
from clipjax.data.images.preprocess import as_pil

GREY, RGB, PALETTE = 0, 2, 3
WIDTH, HEIGHT = 64, 24


def encoded(samples, depth, colour, *chunks):
    """A PNG of samples u16 `[height, width, channels]`, as they are in the file."""
    bits = np.unpackbits(samples.astype(">u2")[..., None].view(np.uint8), axis=-1)
    rows = np.packbits(bits.reshape(*samples.shape, 16)[..., 16 - depth :].reshape(HEIGHT, -1), 1)
    content = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    data = chunk(b"IDAT", zlib.compress(content))
    return png(WIDTH, HEIGHT, *chunks, data, depth=depth, colour=colour)


def samples_of(depth, channels):
    rng = np.random.Generator(np.random.Philox(key=[depth, channels]))
    return rng.integers(0, 2**depth, (HEIGHT, WIDTH, channels)).astype(np.uint16)


def eight_bits(samples, depth):
    return samples >> 8 if depth == 16 else samples * (255 // (2**depth - 1))


def with_alpha(rgb, is_opaque):
    rgb = np.broadcast_to(rgb, (HEIGHT, WIDTH, 3))
    return np.concatenate([rgb, np.where(is_opaque, 255, 0)], -1).astype(np.uint8)


def check(data, expected):
    assert np.ptp(expected[..., 3]) > 0
    np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_key_of_grey(depth):
    samples = samples_of(depth, 1)
    key = samples[0, 0, 0]
    data = encoded(samples, depth, GREY, chunk(b"tRNS", struct.pack(">H", key)))
    check(data, with_alpha(eight_bits(samples, depth), samples != key))


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_the_unused_bits_of_a_key_say_nothing(depth):
    samples = samples_of(depth, 1)
    key = samples[0, 0, 0]
    data = encoded(samples, depth, GREY, chunk(b"tRNS", struct.pack(">H", key | 0xA000)))
    check(data, with_alpha(eight_bits(samples, depth), samples != key))


@pytest.mark.parametrize("depth", [8, 16])
def test_key_of_rgb(depth):
    samples = samples_of(depth, 3)
    key = np.array([0x12, 0x56, 0x9A]) if depth == 8 else np.array([0x1234, 0x5678, 0x9ABC])
    samples[3:7, 5:9] = key
    if depth == 16:
        samples[8, 8] = (key & 0xFF) << 8  # the high bytes are the key's low ones
        samples[9, 9] = key + 1  # told apart by low bytes, which are not decoded
    data = encoded(samples, depth, RGB, chunk(b"tRNS", struct.pack(">3H", *key)))
    rgb = eight_bits(samples, depth)
    check(data, with_alpha(rgb, (rgb != eight_bits(key, depth)).any(-1, keepdims=True)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", ["one", "several"])
def test_transparency_of_a_palette(depth, alphas):
    samples = samples_of(depth, 1)[..., 0]
    palette = np.random.Generator(np.random.Philox(key=depth)).integers(0, 256, (2**depth, 3))
    alpha = np.full(2**depth, 255)
    alpha[1] = 0
    if alphas == "several":
        alpha[0] = 90
    chunks = [(b"PLTE", palette), (b"tRNS", alpha)]
    chunks = [chunk(name, content.astype(np.uint8).tobytes()) for name, content in chunks]
    data = encoded(samples[..., None], depth, PALETTE, *chunks)
    check(data, np.concatenate([palette[samples], alpha[samples][..., None]], -1).astype(np.uint8))


def test_a_palette_of_several_alphas_in_a_pillow_image():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (200, 10, 10, 255)
    quantized = Image.fromarray(rgba).quantize(4)
    assert quantized.mode == "P"
    np.testing.assert_array_equal(np.asarray(as_pil(quantized))[..., 3], rgba[..., 3])
