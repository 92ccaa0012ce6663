"""How the sharding rules in force cut an array, for what each device does with its own part."""

from collections.abc import Mapping, Sequence
from typing import Any

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
