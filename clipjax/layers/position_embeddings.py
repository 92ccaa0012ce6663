"""Learned position embeddings and their resizing to another grid."""

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Float


def resize_grid(
    embedding: Float[Array, "positions width"], grid: tuple[int, int], *, num_extra: int
) -> Float[Array, "new_positions width"]:
    """Resizes image position embeddings: bicubic with antialias, as OpenCLIP does.

    Args:
        embedding: [num_extra + old_grid^2, width]; the first `num_extra` rows (class token) stay.
        grid: rows and columns of patches wanted.
        num_extra: rows in front that belong to no patch.

    Raises:
        ValueError: the rows are not a square grid.
    """
    extra, patches = embedding[:num_extra], embedding[num_extra:]
    side = round(len(patches) ** 0.5)
    if side * side != len(patches):
        raise ValueError(
            f"{len(patches)} patch positions are not a square grid; "
            "only square position embeddings can be resized"
        )
    width = embedding.shape[-1]
    image = patches.reshape(side, side, width)
    image = jax.image.resize(image, (*grid, width), "cubic", antialias=True)
    return jnp.concatenate([extra, image.reshape(-1, width)])


def resize_sequence(
    embedding: Float[Array, "positions width"], length: int
) -> Float[Array, "length width"]:
    """Resizes text position embeddings: linear interpolation along the sequence."""
    return jax.image.resize(embedding, (length, embedding.shape[-1]), "linear", antialias=True)
