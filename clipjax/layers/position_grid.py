"""Learned positions of a square grid, resized to each image's own grid of patches."""

from typing import Any

import jax.numpy as jnp

from clipjax.array_types import Array, Float, Int


def positions_of_patches(
    table: Float[Array, "side side width"], grid: Int[Array, "batch 2"], num_patches: Any
) -> Float[Array, "batch patches width"]:
    """Positions of each image's patches: the table resized bilinearly, with antialias.

    Resizing is separable and linear, so a patch at row r, column c of an image has the position
    sum_ij R[r, i] C[c, j] table[i, j], with R and C the weights that a resize to the image's rows
    and columns has. This keeps every shape the same for all images.

    Args:
        table: of the square grid.
        grid: rows and columns of each image's patches.
        num_patches: patches of an image with its padding, an integer or jax.export's symbol of one;
            padding gets the last patch's position.

    Reference: arXiv:2502.14786, section 2.4.2.
    """
    rows, columns = grid[:, :1], grid[:, 1:]
    number = jnp.minimum(jnp.arange(num_patches), rows * columns - 1)
    side, _, width = table.shape
    row_weights = resize_weights(number // columns, rows, side)
    column_weights = resize_weights(number % columns, columns, side)
    weights = row_weights[..., :, None] * column_weights[..., None, :]
    flat = weights.reshape(*number.shape, side * side).astype(table.dtype)
    # By default a TPU would round weights and table to bfloat16, a GPU to TF32.
    return jnp.matmul(flat, table.reshape(side * side, width), precision="highest")


def resize_weights(
    place: Int[Array, "batch patches"], size: Int[Array, "batch 1"], old_size: int
) -> Float[Array, "batch patches old_size"]:
    """Weights of the old places in a new one: a triangle as wide as the coarser of the two grids.

    Args:
        place: among `size` new places.
        size: new places.
        old_size: old places.
    """
    scale = old_size / size.astype(jnp.float32)
    centre = (place + 0.5) * scale
    distance = jnp.abs(jnp.arange(old_size) + 0.5 - centre[..., None])
    triangle = jnp.maximum(0, 1 - distance / jnp.maximum(scale, 1)[..., None])
    return triangle / triangle.sum(axis=-1, keepdims=True)
