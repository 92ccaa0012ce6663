"""Pixels of the zoo's preprocessing are those of the references, bit for bit."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import odd_pictures as odd
import pytest

from clipjax.data import Preprocess
from clipjax.data.images import preprocess as module
from clipjax.models.images import normalise_images
from clipjax.models.zoo import MODELS

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/data/pictures.json").read_text())
PICTURES = {f"{height}x{width}": (height, width) for height, width in odd.SHAPES}


def digest(pixels):
    assert pixels.dtype == np.uint8
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


def wrong(golden, pixels_of):
    """Names of pictures whose pixels are not the reference's."""
    return [name for name, expected in golden.items() if digest(pixels_of(name)) != expected]


def ours(name):
    resize, kernel, shape = name.split("/")
    preprocess = Preprocess(odd.SIZE, resize=resize, interpolation=kernel)
    return preprocess(odd.picture(*PICTURES[shape]))


def test_pixels_are_open_clip_s():
    assert len(GOLDEN["open_clip"]) == 4 * len(odd.SHAPES) and len(odd.SHAPES) >= 40
    assert wrong(GOLDEN["open_clip"], ours) == []


def test_modes_and_orientations():
    pictures = odd.modes()
    assert len(pictures) == len(GOLDEN["modes"]) == 20
    for name, (data, rgb) in pictures.items():
        decoded = module.to_rgb(module.decode_image(data))
        np.testing.assert_array_equal(np.asarray(decoded), rgb, err_msg=name)
    assert wrong(GOLDEN["modes"], lambda name: Preprocess(odd.SIZE)(pictures[name][0])) == []


def rounded_apart(shape):
    """Whether half a pixel is rounded up by one reference and down by the other."""
    height, width = PICTURES[shape]
    return (int(odd.SIZE * max(height, width) / min(height, width)) - odd.SIZE) % 4 == 3


def test_pixels_are_transformers_but_for_one_rounding(monkeypatch):
    """It rounds the offset of a crop down; open_clip and OpenAI's own code to even."""

    def clip(shape):
        return ours(f"shortest/bicubic/{shape}")

    golden = GOLDEN["transformers_clip"]
    assert wrong(golden, clip) == [shape for shape in golden if rounded_apart(shape)] != []
    assert wrong(GOLDEN["transformers_siglip"], lambda x: ours(f"squash/bicubic/{x}")) == []
    monkeypatch.setattr(module, "round", math.floor, raising=False)
    assert wrong(golden, clip) == []


def test_align_keeps_the_middle_of_what_is_squashed():
    preprocess = Preprocess.from_spec(MODELS["align-base"])
    assert (preprocess.size, preprocess.resize) == (289, "squash")
    shapes = {f"{height}x{width}": (height, width) for height, width in odd.ALIGN_SHAPES}
    assert wrong(GOLDEN["align"], lambda name: preprocess(odd.picture(*shapes[name]))) == []


@pytest.mark.parametrize("fault", ["kernel", "offset", "orientation", "alpha", "crop_fraction"])
def test_a_fault_is_seen(fault, monkeypatch):
    """Negative control of the four tests above."""
    pictures = odd.modes()
    if fault == "kernel":
        kernels = module.INTERPOLATIONS
        swapped = {"bicubic": kernels["bilinear"], "bilinear": kernels["bicubic"]}
        monkeypatch.setattr(module, "INTERPOLATIONS", swapped)
        # A picture of one pixel, and one that is not resized, look the same by any kernel.
        assert len(wrong(GOLDEN["open_clip"], ours)) > 0.7 * len(GOLDEN["open_clip"])
    elif fault == "offset":
        monkeypatch.setattr(module, "round", math.ceil, raising=False)
        assert len(wrong(GOLDEN["open_clip"], ours)) > 10
    elif fault == "crop_fraction":
        preprocess = Preprocess(289, resize="squash", interpolation="bilinear", crop_fraction=0.84)
        assert digest(preprocess(odd.picture(500, 333))) != GOLDEN["align"]["500x333"]
    else:
        if fault == "orientation":
            monkeypatch.setattr(module, "ORIENTATIONS", {})
            expected = [f"exif {number}" for number in range(2, 9)]
        else:
            monkeypatch.setattr(module, "to_rgb", lambda image: image.convert("RGB"))
            expected = ["rgba", "grey alpha", "palette transparent", "color key"]
        found = wrong(GOLDEN["modes"], lambda name: Preprocess(odd.SIZE)(pictures[name][0]))
        assert found == expected


@pytest.mark.parametrize("row", GOLDEN["constants"])
def test_constants_of_a_row_are_the_published_ones(row):
    preprocess = MODELS[row]["preprocess"]
    found = {name: preprocess[name] for name in ("interpolation", "resize")}
    found |= {name: list(preprocess[name]) for name in ("mean", "std")}
    expected = dict(GOLDEN["constants"][row])
    assert found == {"resize": expected.pop("resize_mode"), **expected}


def normalised(row, image, size):
    spec = {**MODELS[row], "image_size": size}
    pixels = Preprocess.from_spec(spec)(image)
    mean, std = spec["preprocess"]["mean"], spec["preprocess"]["std"]
    return np.asarray(normalise_images(pixels[None], mean, std, "float32"))[0]


@pytest.mark.interop
def test_live():
    import reference_preprocessing as reference

    for shape in odd.SHAPES:
        image = odd.picture(*shape)
        for row in GOLDEN["constants"]:
            np.testing.assert_allclose(
                normalised(row, image, odd.SIZE),
                reference.open_clip_floats(row, image, odd.SIZE),
                atol=1e-6,
            )
    for shape in odd.ALIGN_SHAPES:
        np.testing.assert_allclose(
            normalised("align-base", odd.picture(*shape), 289),
            reference.transformers_align_floats(odd.picture(*shape)),
            atol=1e-6,
        )
