"""Adafactor as big_vision has it: no clipping, a cap on b2, momentum (arXiv:2106.04560)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.optim.stacks import each_layer
from clipjax.trees import flatten_with_names, map_with_names

_KEPT = ("v_row", "v_col", "v")


def scale_by_adafactor(*, b1: float, b2: float, mu_dtype: Any) -> optax.GradientTransformation:
    """Scales by the root of a second moment that is kept as rows and columns, then averages.

    The second moment of a tensor with two dimensions from 32 is factored over the two largest. Its
    decay at step t, from 1, is `min(b2, 1 - t^-0.8)`. Each layer of a stack is a tensor.

    Args:
        b1: decay of the first moment, which has no correction of its bias.
        b2: the largest decay of the second moment.
        mu_dtype: of the first moment.
    """

    def decay(count: jax.Array, exponent: float) -> jax.Array:
        return jnp.minimum(b2, 1.0 - (count + 1.0) ** -exponent)

    factored = optax.scale_by_factored_rms(
        decay_rate=0.8, min_dim_size_to_factor=32, epsilon=1e-30, decay_rate_fn=decay
    )
    momentum = optax.ema(b1, debias=False, accumulator_dtype=mu_dtype)
    return optax.chain(_by_layer(factored), momentum)


def _by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.scale_by_factored_rms` of each layer of a stack by itself."""

    def init(params: Any) -> optax.FactoredState:
        def kept(field: str) -> Any:
            return map_with_names(
                lambda name, p: each_layer(name, lambda x: getattr(inner.init(x), field))(p), params
            )

        return optax.FactoredState(jnp.zeros((), jnp.int32), *map(kept, _KEPT))

    def update(
        updates: Any, state: optax.FactoredState, params: Any = None
    ) -> tuple[Any, optax.FactoredState]:
        def one(grad: Any, row: Any, col: Any, v: Any, param: Any) -> tuple[Any, ...]:
            moments = optax.FactoredState(state.count, row, col, v)
            update, new = inner.update(grad, moments, param)
            return update, new.v_row, new.v_col, new.v

        trees = (updates, *(getattr(state, field) for field in _KEPT), params)
        leaves = zip(*map(jax.tree.leaves, trees), strict=True)
        names = [name for name, _ in flatten_with_names(updates)]
        done = [each_layer(n, one)(*each) for n, each in zip(names, leaves, strict=True)]
        structure = jax.tree.structure(updates)
        scaled, *moments = (jax.tree.unflatten(structure, p) for p in zip(*done, strict=True))
        return scaled, optax.FactoredState(optax.safe_increment(state.count), *moments)

    return optax.GradientTransformation(init, update)
