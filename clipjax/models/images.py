"""Pixels on the device: from 0..255 to what a tower takes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from clipjax.array_types import Patches


def normalise_images(
    images: jax.Array | Patches, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike
) -> jax.Array | Patches:
    """`(images / 255 - mean) / std`, computed in float32.

    Args:
        images: [batch, height, width, 3] of 0..255, uint8 or floats, or Patches of such.
        mean: of the three channels, in [0, 1].
        std: of the three channels.
        dtype: of the result.
    """
    if isinstance(images, Patches):
        pixels = images.pixels.reshape(*images.pixels.shape[:-1], -1, 3)
    else:
        pixels = images
    values = pixels.astype(jnp.float32) / 255.0
    mean_row = jnp.asarray(mean, jnp.float32)
    std_row = jnp.asarray(std, jnp.float32)
    values = ((values - mean_row) / std_row).astype(dtype)
    if isinstance(images, Patches):
        return images._replace(pixels=values.reshape(images.pixels.shape))
    return values
