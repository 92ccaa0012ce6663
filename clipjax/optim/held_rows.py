"""Blocks of a stack that stay as they are while the others learn."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from clipjax.trees import map_with_names


def zero_rows(tree: Any, rows: Mapping[str, np.ndarray]) -> Any:
    """Sets some rows of some leaves to zero.

    Args:
        tree: gradients or updates.
        rows: by name, bool `[depth]` for a leaf `[depth, ...]`, or `[]` for all of it.
    """

    def zero(name: str, leaf: Any) -> Any:
        if name not in rows:
            return leaf
        mask = rows[name].reshape(rows[name].shape + (1,) * (leaf.ndim - rows[name].ndim))
        return jnp.where(mask, jnp.zeros((), leaf.dtype), leaf)

    return map_with_names(zero, tree) if rows else tree


def hold_rows(
    tx: optax.GradientTransformationExtraArgs, rows: Mapping[str, np.ndarray]
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that leaves some rows as they are, decay and all; its state is the same.

    Args:
        tx: the optimizer, whose gradients are zero there.
        rows: as for `zero_rows`.
    """
    if not rows:
        return tx

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = tx.update(updates, state, params, **extra)
        return zero_rows(updates, rows), state

    return optax.GradientTransformationExtraArgs(tx.init, update)
