import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.data.transforms import ColorJitter as HostColorJitter
from clipjax.data.transforms.color import RandomGrayscale
from clipjax.layers.color_jitter import (
    ColorJitter,
    change_colors,
    change_contrast,
    color_matrices,
)

KEY = jax.random.key(3)
NOTHING = ColorJitter(hue=0.0, saturation=(1.0, 1.0), gain=0.0, channel_gain=0.0, offset=0.0)
STRONG = ColorJitter(hue=170.0, saturation=(0.0, 3.0), gain=0.6, channel_gain=0.3, offset=60.0)


def pictures(number, side=24):
    return np.random.default_rng(0).integers(0, 256, (number, side, side, 3), np.uint8)


class Recorded:
    """A generator of the host's that keeps what it drew."""

    def __init__(self, seed):
        self.rng, self.drawn = np.random.default_rng(seed), []

    def uniform(self, *args):
        self.drawn.append(self.rng.uniform(*args))
        return self.drawn[-1]


CONTRAST = dataclasses.replace(ColorJitter(), contrast=0.6)


@pytest.mark.parametrize(
    "jitter", [ColorJitter(), STRONG, CONTRAST], ids=["default", "strong", "contrast"]
)
def test_the_host_makes_the_same_pixels_of_the_same_draws(jitter):
    images = pictures(16)
    fields = {name: getattr(jitter, name) for name in HostColorJitter.ranges}
    host, draws = HostColorJitter(**fields), []
    wanted = []
    for seed, image in enumerate(images):
        rng = Recorded(seed)
        wanted.append(host({"image": image, "text": "", "key": ""}, rng)["image"])
        draws.append(rng.drawn)
    angle, saturation, gain, channel_gains, offsets, *contrast = (
        jnp.asarray(column, jnp.float32) for column in zip(*draws, strict=True)
    )
    gains = (1 + gain)[:, None] * (1 + channel_gains)
    images = jnp.asarray(images)
    angle = jnp.deg2rad(angle)

    def change(angle, contrast):
        matrices, shifts = color_matrices(angle, saturation, gains), offsets
        for change in contrast:
            matrices, shifts = change_contrast(images, matrices, shifts, 1 + change)
        return change_colors(images, matrices, shifts)

    found = change(angle, contrast)
    assert found.dtype == jnp.float32
    # The host cuts off what is behind the point; the device does not round at all.
    difference = np.asarray(found, np.float64) - np.stack(wanted)
    assert difference.min() > -1e-2 and difference.max() < 1 + 1e-2
    assert 0.2 < difference.mean() < 0.5 + 1e-2
    # Negative controls: a turn or a contrast the other way is another picture.
    assert np.abs(change(-angle, contrast) - np.stack(wanted)).mean() > 2
    if contrast:
        assert np.abs(change(angle, [-contrast[0]]) - np.stack(wanted)).mean() > 2


def test_draws_fill_the_ranges_of_the_host():
    number = 4000
    jitter = ColorJitter()
    matrices, offsets = map(np.asarray, jitter.draw(KEY, jnp.arange(number)))
    # Grey stays grey but for the gains, so these are the rows' sums; without them a matrix is
    # saturation x turn + what it leaves on the grey axis.
    gains = matrices.sum(2)
    turned = matrices / gains[:, :, None] - 1 / 3
    cosine = np.trace(turned, axis1=1, axis2=2) / 2
    sine = (turned[:, 1, 0] - turned[:, 0, 1]) * 3**0.5 / 2
    angle, saturation = np.rad2deg(np.arctan2(sine, cosine)), np.hypot(sine, cosine)

    def check_uniform(values, low, high):
        width = high - low
        assert low - 1e-4 * width <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high + 1e-4 * width
        assert abs(values.mean() - (low + high) / 2) < 5 * width / (12 * values.size) ** 0.5

    check_uniform(angle, -12, 12)
    check_uniform(saturation, 0.6, 1.4)
    check_uniform(offsets, -15, 15)
    assert 0.85 * 0.92 <= gains.min() < 0.81 and 1.22 < gains.max() <= 1.15 * 1.08
    numbers = np.stack([angle, saturation, *gains.T, *offsets.T])
    correlation = np.abs(np.corrcoef(numbers) - np.eye(8))
    correlation[2:5, 2:5] = 0  # the channels share a gain
    assert correlation.max() < 5 / number**0.5


def test_contrast_leaves_the_channels_means():
    """Of grey pictures as of those that keep their colour."""
    ids = jnp.arange(400)
    images = 64 + jnp.asarray(pictures(400, side=4)) // 2  # nothing is clipped
    jitter = dataclasses.replace(NOTHING, contrast=0.3, probability=0.8)
    out, factors = jitter(images, KEY, ids), np.asarray(jitter.draw_contrast(KEY, ids))
    luma = np.array([0.299, 0.587, 0.114])
    means = np.asarray(images).mean((1, 2), keepdims=True)
    wanted = means + factors[:, None, None, None] * (np.asarray(images) - means)
    np.testing.assert_allclose(out, wanted, atol=1e-3)
    assert 50 < (factors == 1).sum() < 110 and 0.7 <= factors.min() < 0.71 < 1.29 < factors.max()
    grey = np.asarray(dataclasses.replace(jitter, grayscale=1.0)(images, KEY, ids))
    np.testing.assert_allclose(grey, np.repeat(wanted @ luma[:, None], 3, 3), atol=1e-3)


def test_the_contrast_of_a_photograph_on_the_host():
    """Millions of pixels, whose sum in float32 would be another."""
    image = np.random.default_rng(0).integers(150, 246, (2000, 2000, 3), np.uint8)
    nothing = {name: getattr(NOTHING, name) for name in HostColorJitter.ranges}
    host = HostColorJitter(**{**nothing, "contrast": 1.0})

    class Lowest:
        def uniform(self, low, high, size=None):
            return np.full(size, low) if size else low

    out = host({"image": image}, Lowest())["image"]  # at a factor of 0
    assert np.abs(out - image.mean((0, 1))).max() < 1


def test_strength_zero_changes_no_bit():
    images = jnp.asarray(pictures(4))
    np.testing.assert_array_equal(NOTHING(images, KEY, jnp.arange(4)), images)


def test_some_pictures_lose_their_colour_as_on_the_host():
    images, ids = jnp.asarray(pictures(400, side=4)), jnp.arange(400)
    out = np.asarray(dataclasses.replace(NOTHING, grayscale=0.2)(images, KEY, ids))
    grey = (np.ptp(out, axis=3) < 1e-3).all((1, 2))
    assert 50 < grey.sum() < 110
    np.testing.assert_array_equal(out[~grey], images[~grey])
    host = RandomGrayscale(probability=1.0)
    for picture, found in zip(np.asarray(images)[grey], out[grey], strict=True):
        wanted = host({"image": picture}, np.random.default_rng(0))["image"]
        assert np.abs(found - wanted).max() < 0.51  # which is rounded
    # What is not grey has the colours that it has without; grey pictures, those of their luma.
    with_grey, without = dataclasses.replace(STRONG, grayscale=0.5), STRONG
    (both, offsets), (plain, shifts) = with_grey.draw(KEY, ids), without.draw(KEY, ids)
    kept = np.asarray((both == plain).all((1, 2)))
    assert 150 < kept.sum() < 250
    np.testing.assert_array_equal(offsets[kept], shifts[kept])
    luma = np.array([0.299, 0.587, 0.114])
    wanted = np.einsum("c,ncd->nd", luma, np.asarray(plain[~kept], np.float64))
    np.testing.assert_allclose(both[~kept], np.repeat(wanted[:, None], 3, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(offsets[~kept][:, 1], np.asarray(shifts[~kept]) @ luma, atol=1e-4)


def test_some_pictures_keep_their_colours_as_on_the_host():
    images, ids = jnp.asarray(pictures(400, side=4)), jnp.arange(400)
    out = np.asarray(dataclasses.replace(STRONG, probability=0.8)(images, KEY, ids))
    kept = (out == images).all((1, 2, 3))
    assert 50 < kept.sum() < 110
    np.testing.assert_array_equal(out[~kept], np.asarray(STRONG(images, KEY, ids))[~kept])
    host, rng = HostColorJitter(probability=0.8), np.random.default_rng(0)
    same = [(host({"image": x}, rng)["image"] == x).all() for x in np.asarray(images)]
    assert 50 < sum(same) < 110


def test_colours_follow_the_examples_and_the_key():
    images, ids = jnp.asarray(pictures(6)), jnp.arange(6)
    order = jnp.array([4, 2, 0, 5, 1, 3])
    jitter = jax.jit(ColorJitter())
    out = jitter(images, KEY, ids)
    np.testing.assert_array_equal(jitter(images[order], KEY, ids[order]), out[order])
    # Negative control: other ids or another key are other colours, and no two draws are one.
    assert np.abs(jitter(images, KEY, ids + 6) - out).mean((1, 2, 3)).min() > 1
    assert np.abs(jitter(images, jax.random.key(4), ids) - out).mean((1, 2, 3)).min() > 1
    _, offsets = ColorJitter().draw(KEY, ids)
    assert len(np.unique(offsets)) == offsets.size


def test_floats_are_taken_and_the_result_is_clipped():
    images, ids = jnp.asarray(pictures(8)), jnp.arange(8)
    out = STRONG(images, KEY, ids)
    assert out.min() == 0 and out.max() == 255
    np.testing.assert_array_equal(STRONG(images.astype(jnp.float32), KEY, ids), out)
