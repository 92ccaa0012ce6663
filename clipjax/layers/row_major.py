"""Tokens in memory with the width innermost, on every device."""

import math

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from clipjax.array_types import Array, Float
from clipjax.layers.shards import free_axes, spec_in_force

AXES = ("batch", "length", "embed")


# The rule of differentiation stands outside of the shard_map: turned around by JAX, a shard_map
# sums cotangents over the mesh axes that its arguments do not lie on.
@jax.custom_vjp
def row_major(x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
    """The same tokens, and the same of their cotangent, laid out batch, length, width.

    XLA does not partition the constraint, and would gather the batch: each device is given that of
    its own part, as the sharding rules in force cut the tokens.
    """
    return _laid_out(x)


def _laid_out(x: jax.Array) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    free = {} if mesh.empty else free_axes(mesh)
    if math.prod(free.values()) == 1:
        return _constrained(x)
    spec = PartitionSpec(*spec_in_force(AXES, x.shape, free))
    mapped = jax.shard_map(
        _constrained, mesh=mesh, in_specs=(spec,), out_specs=spec, axis_names=set(free),
        check_vma=False,
    )  # fmt: skip
    return mapped(x)


def _constrained(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout((0, 1, 2)))


def _forward(x: jax.Array) -> tuple[jax.Array, None]:
    return _laid_out(x), None


def _backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (_laid_out(cotangent),)


row_major.defvjp(_forward, _backward)
