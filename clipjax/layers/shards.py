"""How the sharding rules in force cut an array, for what each device does with its own part."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, PartitionSpec

from clipjax.partitioning.rules import LOGICAL_AXIS_RULES, spec_of


def free_axes(mesh: Any) -> dict[str, int]:
    """The axes along which a mesh is not cut yet; inside another shard_map some are."""
    return {axis: size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes}


def spec_in_force(
    axes: Sequence[str | None], shape: tuple[int, ...], free: Mapping[str, int]
) -> PartitionSpec:
    """Along which mesh axes the rules in force cut an array.

    Args:
        axes: the logical axis of each dimension; None for one that is whole.
        shape: of the array.
        free: the axes of the mesh that may cut, with their sizes.
    """
    rules = nn.get_logical_axis_rules() or LOGICAL_AXIS_RULES["replicated"].params
    known = [rule for rule in rules if rule[1] is None or {*np.atleast_1d(rule[1])} <= {*free}]
    return spec_of(axes, shape, known, AbstractMesh(tuple(free.values()), tuple(free)))


def on_each_device(
    function: Callable[..., Any],
    args: Sequence[Any],
    specs_of: Callable[[Mapping[str, int]], tuple[tuple[Any, ...], PartitionSpec]],
) -> Any:
    """Runs a function of each device's own parts of arrays; nothing is sent between devices.

    JAX's rule of differentiation does not fit: turned around, a shard_map sums cotangents over the
    mesh axes that its arguments do not lie on. Who calls it has a rule of their own outside.

    Args:
        function: of `args`.
        args: the first is an array of the mesh's; None is passed on.
        specs_of: gives, of the axes that may cut, the specs of the arguments and of the result.
    """
    context = jax.sharding.get_abstract_mesh()
    mesh = jax.typeof(args[0]).sharding.mesh if context.empty else context
    free = free_axes(mesh)
    if math.prod(free.values()) == 1:
        return function(*args)
    in_specs, out_spec = specs_of(free)
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_spec,
        axis_names=set(free),
        check_vma=False,  # a kernel says nothing of what its results vary over
    )
    return mapped(*args)
