"""Pixels on the device: from uint8 to what a tower takes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalise_images(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype
) -> jax.Array:
    """`(images / 255 - mean) / std`, computed in float32.

    Args:
        images: [batch, height, width, 3] uint8.
        mean: of the three channels, in [0, 1].
        std: of the three channels.
        dtype: of the result.
    """
    values = images.astype(jnp.float32) / 255.0
    mean_row = jnp.asarray(mean, jnp.float32)
    std_row = jnp.asarray(std, jnp.float32)
    return ((values - mean_row) / std_row).astype(dtype)
