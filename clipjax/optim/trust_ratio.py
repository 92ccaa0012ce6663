"""LAMB: Adam whose update of each tensor is as long as the tensor (arXiv:1904.00962)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from clipjax.optim.stacks import layer_norm_of
from clipjax.trees import map_with_names


def scale_by_trust_ratio(adapts: Callable[[str], bool]) -> optax.GradientTransformation:
    """Scales updates, decay included, by `|param| / |update|`, by 1 where one of them is 0.

    Each layer of a stack is a tensor of its own.

    Args:
        adapts: which parameters by name; the published code leaves out what it does not decay.
    """

    def scaled(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if not adapts(name):
            return update
        length, size = layer_norm_of(name, update), layer_norm_of(name, param)
        both = (length > 0) & (size > 0)
        return (jnp.where(both, size / jnp.where(both, length, 1.0), 1.0) * update).astype(
            update.dtype
        )

    return optax.stateless(lambda updates, params: map_with_names(scaled, updates, params))
