"""Position embeddings: fixed ones, and the resizing of learned ones to another grid."""

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


def sincos_2d(side: int, width: int) -> Float[Array, "positions width"]:
    """Fixed positions: sines and cosines of the column, then of the row (arXiv:2104.02057).

    Frequencies fall geometrically from 1 to 1/10,000, both included, as in big_vision.

    Args:
        side: patches in a row and in a column.
        width: of the tokens, a multiple of 4.

    Returns:
        `[side * side, width]` float32, row by row.

    Raises:
        ValueError: a width that is no multiple of 4, or below 8.
    """
    if width % 4 or width < 8:
        raise ValueError(f"sincos2d positions need a width that is a multiple of 4, not {width}")
    frequencies = 10_000.0 ** -(jnp.arange(width // 4) / (width // 4 - 1))
    angles = jnp.arange(side)[:, None] * frequencies
    rows = jnp.repeat(angles, side, axis=0)
    columns = jnp.tile(angles, (side, 1))
    parts = [jnp.sin(columns), jnp.cos(columns), jnp.sin(rows), jnp.cos(rows)]
    return jnp.concatenate(parts, axis=1)
