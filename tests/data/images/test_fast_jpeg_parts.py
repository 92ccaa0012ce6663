"""The fast path where it is hardest: pictures of much detail, parts that end between pixels."""

import numpy as np
import pytest
from PIL import Image
from test_fast_jpeg import CASES, SIZES, difference, encode, transform

from clipjax.data.images import fast_jpeg
from clipjax.data.images.fast_jpeg import FastJpeg
from clipjax.data.transforms import ResizeAndCrop


def rng(key):
    return np.random.Generator(np.random.Philox(key=key))


def like_a_photograph(width, height):
    """Amplitudes fall as one over the frequency."""
    fall = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    fall[0, 0] = 1
    noise = np.fft.fft2(rng(1).normal(size=(3, height, width)))
    waves = np.moveaxis(np.real(np.fft.ifft2(noise / fall)), 0, -1)
    return Image.fromarray(np.clip(waves / waves.std() * 50 + 128, 0, 255).astype(np.uint8))


def like_print(width, height):
    """Thin dark strokes on white."""
    page = np.full((height, width), 255, np.uint8)
    for x, y, kind, length, ink in rng(2).integers(0, 10_000, (width * height // 150, 5)):
        sides = (1 + kind % 2, 3 + length % 9)
        h, w = sides if kind % 4 < 2 else sides[::-1]
        page[y % height :, x % width :][:h, :w] = ink % 80
    return Image.fromarray(page).convert("RGB")


def noise(width, height):
    return Image.fromarray(rng(3).integers(0, 256, (height, width, 3), np.uint8))


def checkerboard(width, height):
    y, x = np.mgrid[:height, :width] // 3
    return Image.fromarray(np.uint8((x + y) % 2 * 255)).convert("RGB")


# Content -> the largest mean difference of CLIP's crop, of 0..255; docs/data.md states them.
CONTENTS = {like_a_photograph: 4, like_print: 4, noise: 9, checkerboard: 9}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("size", SIZES)
def test_how_near_it_is_depends_on_the_detail(content, size):
    data, (make, options) = encode(content(*size)), CASES[0]
    reference = transform(make, "reference", data, **options)
    fast = transform(make, "fast", data, **options)
    assert 0.5 < difference(fast, reference) < CONTENTS[content]
    if content is not checkerboard:  # of which little is left that a shift could change
        assert difference(np.roll(fast, 2, axis=1), reference) > CONTENTS[content]


@pytest.mark.parametrize("size", [(500, 375), (300, 901), (1280, 854)])
def test_the_centre_is_the_reference_s_to_a_fraction_of_a_pixel(size):
    data = encode(like_a_photograph(*size))
    fast = transform(ResizeAndCrop, "fast", data)
    assert difference(fast, transform(ResizeAndCrop, "reference", data)) < 4  # 5 half a pixel aside


def crop_sizes(monkeypatch, width, height, boxes, size):
    """Rows and columns that are left of each box at the fraction at which a JPEG is decoded."""
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(fast_jpeg.simplejpeg, "decode_jpeg", lambda *_, buffer, **__: buffer)
        patch.setattr(fast_jpeg, "resize_to", lambda image, _: found.append(image.shape[:2]))
        for box in boxes:
            FastJpeg(b"", width, height).crop(box, size)
    return found


@pytest.mark.parametrize("size", [7, 63, 224, 225, 227])
def test_no_crop_falls_below_the_target(size, monkeypatch):
    draw = rng(size)
    for scale in (1, 2, 4, 8):
        for _ in range(60):
            side = size * scale + int(draw.integers(scale + 1))
            corner = draw.integers(0, 4 * scale, 2) / 2  # a centre lies at half pixels, too
            width, height = (int(np.ceil(c + side + draw.integers(3))) for c in corner)
            box = (*corner, *(corner + side))
            ((rows, columns),) = crop_sizes(monkeypatch, width, height, [box], size)
            assert size <= min(rows, columns), box
            assert max(rows, columns) <= side / scale + 2


def test_a_crop_that_was_a_pixel_short(monkeypatch):
    # An eighth of 12..1812 is 1.5..226.5, which round() brings to 2..226: 224 pixels.
    assert crop_sizes(monkeypatch, 1830, 1830, [(12, 12, 1812, 1812)], 225) == [(225, 225)]
