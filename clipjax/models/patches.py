"""The first layers of a vision transformer: square patches, a class token, learned positions.

The parameters are those of the tower that asks, in its compact method, under these names.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.layers.initializers import parameter, uniform
from clipjax.layers.position_embeddings import resize_grid


def embed_patches(tower: Any, images: jax.Array, *, use_bias: bool = False) -> jax.Array:
    """The patch convolution as one matrix product, which it is: stride equals kernel.

    Args:
        tower: with `image_size`, `patch_size`, `width`, `init_name`, `dtype`.
        images: `[batch, height, width, 3]`, normalised.
        use_bias: adds one.

    Returns:
        `[batch, patches, width]`; pixels beyond the last whole patch are cut off.

    Raises:
        ValueError: images of another size.
    """
    size, grid = tower.patch_size, tower.image_size // tower.patch_size
    if images.shape[1:] != (tower.image_size, tower.image_size, 3):
        raise ValueError(
            f"images are {images.shape[1:]}, the model takes "
            f"({tower.image_size}, {tower.image_size}, 3); set image_size"
        )
    init = uniform((3 * size * size) ** -0.5)
    if tower.init_name == "xavier":
        init = nn.initializers.lecun_normal()
    axes, shape = ("patch", None, None, "embed"), (size, size, 3, tower.width)
    kernel = parameter(tower, "patch_kernel", init, axes, shape)
    images = images[:, : grid * size, : grid * size]
    patches = images.reshape(-1, grid, size, grid, size, 3).swapaxes(2, 3)
    patches = patches.reshape(-1, grid * grid, size * size * 3).astype(tower.dtype)
    patches = patches @ kernel.reshape(-1, tower.width).astype(tower.dtype)
    if use_bias:
        zeros = nn.initializers.zeros
        bias = parameter(tower, "patch_bias", zeros, ("embed",), (tower.width,))
        patches += bias.astype(tower.dtype)
    return patches


def add_class_token(tower: Any, x: jax.Array) -> jax.Array:
    """Puts the tower's learned token in front of the patches `[batch, patches, width]`."""
    init = nn.initializers.normal(tower.width**-0.5)
    token = parameter(tower, "class_embedding", init, ("embed",), (tower.width,))
    tokens = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, tower.width))
    return jnp.concatenate([tokens, x], axis=1)


def learned_positions(tower: Any, num_extra: int) -> jax.Array:
    """The tower's table `[num_extra + patches, width]`, resized where it is of another grid."""
    grid = tower.image_size // tower.patch_size
    table_grid = (tower.table_image_size or tower.image_size) // tower.patch_size
    init = nn.initializers.normal(tower.width**-0.5)
    shape = (num_extra + table_grid**2, tower.width)
    table = parameter(tower, "position_embedding", init, ("position", "embed"), shape)
    if table_grid == grid:
        return table
    return resize_grid(table, (grid, grid), num_extra=num_extra)
