"""RandAugment and grey pictures, beside those of torchvision where it is there."""

import numpy as np
import pytest
from PIL import Image

from clipjax.data import make_transforms
from clipjax.data.transforms.rand_augment import OPERATIONS, TWO_WAYS

ENHANCED = {"brightness", "color", "contrast", "sharpness"}


def rng(key=0):
    return np.random.Generator(np.random.Philox(key=key))


def picture():
    """Smooth, with edges: what noise would hide."""
    y, x = np.mgrid[:30, :40]
    planes = [6 * x, 8 * y, 255 * ((x // 5 + y // 6) % 2)]
    return np.stack(planes, axis=-1).clip(10, 230).astype(np.uint8)


def build(name, **fields):
    return make_transforms([{"name": name, **fields}], image_size=8)[0]


def apply(name, part, fill=128):
    return np.asarray(OPERATIONS[name](Image.fromarray(picture()), part, fill))


def test_operations_do_what_they_are_called():
    image = picture()
    np.testing.assert_array_equal(apply("identity", 1.0), image)
    moved = apply("translate_x", 0.5)  # 150 / 331 of 40 pixels, half of it: 9
    np.testing.assert_array_equal(moved[:, 9:], image[:, :-9])
    assert (moved[:, :9] == 128).all()
    np.testing.assert_array_equal(apply("translate_y", -1.0)[:-13], image[13:])
    sheared = apply("shear_x", 1.0)  # row 20 looks 0.3 * 20.5 to the right
    np.testing.assert_array_equal(sheared[20, :34], image[20, 6:])
    assert np.array_equal(apply("posterize", 1.0), image & 0xF0)
    assert np.array_equal(apply("solarize", 1.0), 255 - image)
    assert np.array_equal(apply("solarize", 0.0), image)
    assert apply("auto_contrast", 0.0).min() == 0 and apply("auto_contrast", 0.0).max() == 255
    for name in TWO_WAYS - {"sharpness"}:
        np.testing.assert_array_equal(apply(name, 0.0), image)
        assert (apply(name, 0.7) != apply(name, -0.7)).mean() > 0.2, name


def test_each_operation_comes_as_often_as_another():
    counts, image = {}, picture()
    augment = build("rand_augment", num_ops=1, magnitude=30)
    possible = {}
    for name in OPERATIONS:
        for sign in (1, -1) if name in TWO_WAYS else (1,):
            possible[apply(name, sign).tobytes()] = (name, sign)
    assert len(possible) == len(OPERATIONS) + len(TWO_WAYS)
    for key in range(1400):
        out = augment({"image": image}, rng(key))["image"]
        found = possible[out.tobytes()]
        counts[found] = counts.get(found, 0) + 1
    assert set(counts) == set(possible.values())
    for name in OPERATIONS:
        assert 60 < sum(counts.get((name, sign), 0) for sign in (1, -1)) < 145
    # Two are one after another.
    outs = {
        build("rand_augment")({"image": image}, rng(key))["image"].tobytes() for key in range(99)
    }
    assert len(outs) > 60


def test_grey_pictures_keep_their_luma_and_their_transparency():
    image = picture()
    grey = build("random_grayscale", probability=1.0)
    luma = np.rint(image @ np.array([0.299, 0.587, 0.114]))
    out = grey({"image": image}, rng())["image"]
    assert out.shape == image.shape and np.abs(out - luma[..., None]).max() <= 1
    clear = np.concatenate([image, image[..., :1]], axis=2)
    out = grey({"image": clear}, rng())["image"]
    np.testing.assert_array_equal(out[..., 3], clear[..., 3])
    assert np.ptp(out[..., :3], axis=2).max() == 0
    some = build("random_grayscale")
    found = sum(
        np.ptp(some({"image": image}, rng(k))["image"], axis=2).max() == 0 for k in range(400)
    )
    assert 50 < found < 110


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magnitude": 31}, r"magnitude = 31.*\[0, 30\]"),
        ({"num_ops": 0}, "num_ops = 0"),
        ({"fill": 256}, r"fill = 256.*\[0, 255\]"),
    ],
)
def test_strengths_that_mean_nothing(fields, message):
    with pytest.raises(ValueError, match=message):
        build("rand_augment", **fields)


@pytest.mark.interop
def test_pixels_are_those_of_torchvision(monkeypatch):
    import torch
    from torchvision import transforms

    image = Image.fromarray(picture())
    draws = []  # theirs: the operation, and whether a signed one goes the other way
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.tensor([draws.pop(0)]))
    for number, (name, operation) in enumerate(OPERATIONS.items()):
        for magnitude in (0, 3, 10, 17, 30):
            theirs = transforms.RandAugment(num_ops=1, magnitude=magnitude, fill=[128] * 3)
            for sign in (1, -1) if name in TWO_WAYS else (1,):
                draws[:] = [number, sign < 0][: 1 + (name in TWO_WAYS)]
                wanted = np.asarray(theirs(image)).astype(int)
                assert not draws  # as many as here
                found = np.asarray(operation(image, sign * magnitude / 30, 128))
                # Their magnitudes are of float32, by which half a value may round another way.
                assert np.abs(found - wanted).max() <= (name in ENHANCED), (name, magnitude)
                assert (found != wanted).mean() < 0.1, (name, magnitude)
    wanted = transforms.Grayscale(3)(image)
    found = build("random_grayscale", probability=1.0)({"image": picture()}, rng())["image"]
    np.testing.assert_array_equal(found, np.asarray(wanted))
