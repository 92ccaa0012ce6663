"""Inks, and 16 bits with transparency, by pixels that are worked out by hand."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from broken_pictures import chunk, png
from odd_pictures import encode
from PIL import Image

from clipjax.data import decode_image
from clipjax.data.images.fast_jpeg import FastJpeg
from clipjax.data.images.preprocess import to_rgb

INKS = [(0, 0, 0, 0), (0, 0, 0, 255), (200, 30, 90, 40), (255, 0, 0, 0), (10, 250, 130, 128)]
SIDE = 16  # of the patch of an ink


def patches(colours):
    rows = np.repeat(np.array(colours, np.uint8)[None], SIDE, 0)
    return np.repeat(rows, SIDE, 1)


def paper(ink):
    """What is left of white light by cyan, magenta, yellow, and by black."""
    return [(255 - part) * (255 - ink[3]) / 255 for part in ink[:3]]


def cmyk(stored):
    """A JPEG of these samples: Pillow itself inverts what it writes."""
    return encode(Image.fromarray(255 - patches(stored), "CMYK"), "JPEG", quality=100)


def without_marker(data):
    place = data.index(b"\xff\xee")
    assert data[place + 4 : place + 9] == b"Adobe"
    return data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :]


def with_transform(data, transform):
    place = data.index(b"Adobe") + 11
    return data[:place] + bytes([transform]) + data[place + 1 :]


def luminance(ink):
    """Of a JPEG as YCCK: of cyan, magenta and yellow as if they were red, green and blue."""
    y, cb, cr = Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr").getpixel((0, 0))
    return y, cb, cr, 255 - ink[3]


INVERTED = cmyk([tuple(255 - part for part in ink) for ink in INKS])
KINDS = {
    "cmyk with Adobe's marker": with_transform(INVERTED, 0),
    "cmyk without a marker": without_marker(INVERTED),
    "ycck": with_transform(cmyk([luminance(ink) for ink in INKS]), 2),
}


@pytest.mark.parametrize("name", KINDS)
def test_inks(name):
    data = KINDS[name]
    image = decode_image(data)
    assert image.mode == "RGB" and FastJpeg.open(data) is None
    expected = patches([paper(ink) for ink in INKS])
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 3
    # Another reader, by its own rule for inks.
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(np.asarray(image).astype(int) - other).max() <= 4


def test_the_kinds_of_ink_are_told_apart():
    """Negative control: one kind read as another gives other colours."""
    for data in (with_transform(INVERTED, 2), with_transform(KINDS["ycck"], 0)):
        pixels = np.asarray(decode_image(data)).astype(int)
        assert np.abs(pixels - patches([paper(ink) for ink in INKS])).max() > 100


def deep_png(samples, colour):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    height, width = samples.shape[:2]
    return png(width, height, chunk(b"IDAT", zlib.compress(rows)), depth=16, colour=colour)


@pytest.mark.parametrize("colour, channels", [(4, 2), (6, 4)], ids=["grey alpha", "rgba"])
def test_16_bits_with_transparency_keep_their_high_bytes(colour, channels):
    rng = np.random.Generator(np.random.Philox(key=channels))
    samples = rng.integers(0, 1 << 16, (9, 13, channels)).astype(np.uint16)
    samples[0, :4, -1] = (0, 0xFFFF, 0x00FF, 0xFF00)
    image = decode_image(deep_png(samples, colour))
    high = samples >> 8
    expected = np.concatenate([np.broadcast_to(high[..., :-1], (9, 13, 3)), high[..., -1:]], -1)
    np.testing.assert_array_equal(np.asarray(image), expected)
    alpha = expected[..., 3:] / 255
    white = np.round(expected[..., :3] * alpha + 255 * (1 - alpha))
    assert np.abs(np.asarray(to_rgb(image)) - white).max() <= 1


def test_every_colour_on_white_is_rounded_to_the_nearest():
    value, alpha = np.mgrid[:256, :256].astype(np.uint8)
    image = Image.fromarray(np.stack([value, value, value, alpha], -1))
    exact = (value.astype(int) * alpha + 255 * (255 - alpha.astype(int))) / 255
    pixels = np.asarray(to_rgb(image))[..., 0]
    assert np.abs(pixels - exact).max() < 0.5
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    np.testing.assert_array_equal(pixels, Image.alpha_composite(ground, image).convert("L"))


def test_a_profile_of_inks_changes_nothing():
    profile = struct.pack(">I4s", 132, b"ADBE") + bytes(124)
    data = encode(Image.fromarray(patches(INKS), "CMYK"), "JPEG", quality=100, icc_profile=profile)
    plain = encode(Image.fromarray(patches(INKS), "CMYK"), "JPEG", quality=100)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(decode_image(plain)))
