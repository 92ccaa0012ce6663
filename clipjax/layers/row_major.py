"""Tokens in memory with the width innermost, on every device."""

from collections.abc import Mapping

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from clipjax.array_types import Array, Float
from clipjax.layers.shards import on_each_device, spec_in_force

AXES = ("batch", "length", "embed")


@jax.custom_vjp
def row_major(x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
    """The same tokens, and the same of their cotangent, laid out batch, length, width.

    XLA does not partition the constraint, and would gather the batch: each device is given that of
    its own part, as the sharding rules in force cut the tokens.
    """
    return _laid_out(x)


def _laid_out(x: jax.Array) -> jax.Array:
    def specs_of(free: Mapping[str, int]) -> tuple[tuple[PartitionSpec], PartitionSpec]:
        spec = spec_in_force(AXES, x.shape, free)
        return (spec,), spec

    return on_each_device(_constrained, (x,), specs_of)


def _constrained(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout((0, 1, 2)))


def _forward(x: jax.Array) -> tuple[jax.Array, None]:
    return _laid_out(x), None


def _backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (_laid_out(cotangent),)


row_major.defvjp(_forward, _backward)
