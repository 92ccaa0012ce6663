"""Colour jitter of a batch on the device, the same as the host's transform of that name."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Bool, Float, Int, Num
from clipjax.color_strengths import ColorStrengths
from clipjax.layers.dropout import uniform_per_example
from clipjax.ranges import FRACTION, Rule

# Folded into the step's key, so that these draws are not those of a module of the model.
_OWN_DRAWS, _GREY_DRAWS, _CHANCES = 0x636F6C6F, 0x67726579, 0x63686E63
_CONTRASTS = 0x636F6E74
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue


@dataclasses.dataclass(frozen=True)
class ColorJitter(ColorStrengths):
    """Hue, saturation, gain, offset and contrast, as one 3 x 3 matrix and one offset an example.

    The draws are keyed by (step key, example id): the micro-batch, device or host that an example
    lands on makes no difference.

    Args:
        grayscale: how often an image then loses its colour, as by the transform `random_grayscale`.
    """

    grayscale: float = 0.0

    ranges: ClassVar[Mapping[str, Rule]] = {**ColorStrengths.ranges, "grayscale": FRACTION}

    def __call__(
        self,
        images: Num[Array, "batch height width 3"],
        key: jax.Array,
        example_ids: Int[Array, " batch"],
    ) -> Float[Array, "batch height width 3"]:
        """Changes the colours of images of 0..255; the result is float32 and not rounded.

        Args:
            images: uint8, or floats.
            key: of the step, the same for the whole batch.
            example_ids: what tells the examples of a batch apart.
        """
        matrices, offsets = self.draw(key, example_ids)
        if self.contrast:
            factors = self.draw_contrast(key, example_ids)
            matrices, offsets = change_contrast(images, matrices, offsets, factors)
        return change_colors(images, matrices, offsets)

    def draw_contrast(
        self, key: jax.Array, example_ids: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """Draws the factor of each example's contrast."""
        draws = uniform_per_example(jax.random.fold_in(key, _CONTRASTS), example_ids, ())
        factors = 1 + self.contrast * (2 * draws - 1)
        return jnp.where(self._is_changed(key, example_ids), factors, 1)

    def _is_changed(
        self, key: jax.Array, example_ids: Int[Array, " batch"]
    ) -> Bool[Array, " batch"]:
        draws = uniform_per_example(jax.random.fold_in(key, _CHANCES), example_ids, ())
        return draws < self.probability

    def draw(
        self, key: jax.Array, example_ids: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch 3 3"], Float[Array, "batch 3"]]:
        """Draws the matrix and the offset of each example, but for the contrast."""
        draws = uniform_per_example(jax.random.fold_in(key, _OWN_DRAWS), example_ids, (9,))
        either_way = 2 * draws - 1
        low, high = self.saturation
        gain = 1 + self.gain * either_way[:, 2:3]
        matrices = color_matrices(
            angle=jnp.deg2rad(self.hue * either_way[:, 0]),
            saturation=low + (high - low) * draws[:, 1],
            gains=gain * (1 + self.channel_gain * either_way[:, 3:6]),
        )
        offsets = self.offset * either_way[:, 6:9]
        # Of draws of their own: without them, colours are those that they were.
        if self.probability < 1:
            changed = self._is_changed(key, example_ids)
            matrices = jnp.where(changed[:, None, None], matrices, jnp.eye(3))
            offsets = jnp.where(changed[:, None], offsets, 0)
        if self.grayscale:
            draws = uniform_per_example(jax.random.fold_in(key, _GREY_DRAWS), example_ids, ())
            grey, luma = draws < self.grayscale, jnp.array(_LUMA, jnp.float32)
            weights = (luma[:, None] * matrices).sum(1, keepdims=True)
            matrices = jnp.where(grey[:, None, None], weights, matrices)
            offsets = jnp.where(grey[:, None], (luma * offsets).sum(1, keepdims=True), offsets)
        return matrices, offsets


def color_matrices(
    angle: Float[Array, " batch"],
    saturation: Float[Array, " batch"],
    gains: Float[Array, "batch 3"],
) -> Float[Array, "batch 3 3"]:
    """Turns about the grey axis, scales the distance from it, then scales the channels.

    With I the identity, G the projection on the grey axis and K the cross product with it, the turn
    is `cos I + (1 - cos) G + sin K` (Rodrigues) and the saturation `s I + (1 - s) G`. Since GG = G
    and GK = 0, their product is the sum below: no matrix product, which a TPU would round.

    Args:
        angle: of the turn, in radians.
        saturation: factor s of the distance from grey.
        gains: of the channels.
    """
    root = 3**-0.5
    cross = jnp.array([[0, -root, root], [root, 0, -root], [-root, root, 0]], jnp.float32)
    along = (saturation * jnp.cos(angle))[:, None, None]
    across = (saturation * jnp.sin(angle))[:, None, None]
    matrices = along * jnp.eye(3) + (1 - along) / 3 + across * cross
    return gains[:, :, None] * matrices


def change_contrast(
    images: Num[Array, "batch height width 3"],
    matrices: Float[Array, "batch 3 3"],
    offsets: Float[Array, "batch 3"],
    factors: Float[Array, " batch"],
) -> tuple[Float[Array, "batch 3 3"], Float[Array, "batch 3"]]:
    """Scales the distance of what a matrix and an offset give from its channels' means.

    The means are those of an image that nothing clips. It makes no difference whether the matrix
    takes its colour away, too, before or behind.
    """
    means = images.astype(jnp.float32).mean((1, 2))
    levels = (matrices * means[:, None]).sum(2) + offsets
    factors = factors[:, None]
    return factors[:, None] * matrices, factors * offsets + (1 - factors) * levels


def change_colors(
    images: Num[Array, "batch height width 3"],
    matrices: Float[Array, "batch 3 3"],
    offsets: Float[Array, "batch 3"],
) -> Float[Array, "batch height width 3"]:
    """`matrix @ pixel + offset` in float32, clipped to [0, 255]."""
    values = images.astype(jnp.float32)
    # As products and sums, which XLA fuses: twenty times quicker on a CPU than an einsum.
    out = offsets[:, None, None]
    for channel in range(3):
        out = out + values[..., channel, None] * matrices[:, None, None, :, channel]
    return jnp.clip(out, 0, 255)
