"""The tables: which mesh axes a logical axis falls on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from clipjax.partitioning.mesh import BATCH_AXES, MESH_AXES
from clipjax.ranges import FieldError

# What layers call their dimensions, and a rule may name.
LOGICAL_AXES = (
    "batch", "length", "embed", "mlp", "heads", "head_dim", "qkv", "kv", "vocab", "projection",
    "position", "patch", "layers",
)  # fmt: skip

# A rule sends a logical axis to mesh axes, or to None, which keeps it whole. For each array the
# rules are tried from the top; one applies if the array has the logical axis, none of its mesh axes
# is taken, and the dimension divides by their size. `batch` stands first, so that an activation
# keeps its batch axes.
Rule = tuple[str, str | tuple[str, ...] | None]
_BATCH: tuple[Rule, ...] = (("batch", BATCH_AXES),)
_TENSOR: tuple[Rule, ...] = (
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)
# The widest dimensions first: they divide by the largest meshes.
_FSDP: tuple[Rule, ...] = (
    ("vocab", "fsdp"),
    ("mlp", "fsdp"),
    ("embed", "fsdp"),
    ("head_dim", "fsdp"),
)
_ZERO: tuple[Rule, ...] = tuple(
    (axis, mesh_axes)
    for mesh_axes in (BATCH_AXES, "data", "fsdp")
    for axis in ("vocab", "mlp", "embed", "projection", "head_dim")
)


@dataclass(frozen=True)
class ShardingRules:
    """Rules for the parameters (and activations), and for the optimizer's state."""

    params: tuple[Rule, ...]
    optimizer: tuple[Rule, ...]


LOGICAL_AXIS_RULES: dict[str, ShardingRules] = {
    "replicated": ShardingRules(_BATCH, _BATCH),
    "zero1": ShardingRules(_BATCH, _BATCH + _ZERO),
    "fsdp": ShardingRules(_BATCH + _FSDP, _BATCH + _FSDP),
    "tensor": ShardingRules(_BATCH + _TENSOR, _BATCH + _TENSOR + _ZERO),
}


def rules_of(table: str | ShardingRules, overrides: Sequence[Rule] = ()) -> ShardingRules:
    """Puts a config's own rules in front of a table's.

    Raises:
        ValueError: an unknown name, or a rule that is none.
    """
    if isinstance(table, ShardingRules):
        parts = (("params", table.params), ("optimizer", table.optimizer))
        for part, rules in parts:
            for place, rule in enumerate(rules):
                _checked(rule, f"sharding.{part}[{place}]")
    elif table in LOGICAL_AXIS_RULES:
        table = LOGICAL_AXIS_RULES[table]
    else:
        raise FieldError(
            f"sharding = {table!r} is unknown; allowed are {', '.join(LOGICAL_AXIS_RULES)}"
        )
    own = tuple(_checked(rule, f"logical_axes[{place}]") for place, rule in enumerate(overrides))
    return ShardingRules(own + table.params, own + table.optimizer)


def _checked(rule: Any, path: str) -> Rule:
    if isinstance(rule, list | tuple) and len(rule) == 2 and rule[0] in LOGICAL_AXES:
        axis, target = rule[0], tuple(rule[1]) if isinstance(rule[1], list) else rule[1]
        wanted = (target,) if isinstance(target, str) else target
        if target is None or (isinstance(wanted, tuple) and wanted and set(wanted) <= {*MESH_AXES}):
            return axis, target
    raise FieldError(
        f"{path} = {rule!r}: a rule is a pair of a logical axis "
        f"({', '.join(LOGICAL_AXES)}) and a mesh axis ({', '.join(MESH_AXES)}), several mesh axes, "
        "or None to keep the axis whole"
    )


def spec_of(
    axes: Sequence[str | None],
    shape: Sequence[int],
    rules: Sequence[Rule],
    mesh: Mesh | AbstractMesh,
) -> PartitionSpec:
    """Applies rules to one array."""
    assigned: list[Any] = [None] * len(shape)
    settled: set[str] = set()
    taken: set[str] = set()
    for logical, target in rules:
        if logical not in axes or logical in settled:
            continue
        if target is None:
            settled.add(logical)
            continue
        dimension = list(axes).index(logical)
        wanted = (target,) if isinstance(target, str) else tuple(target)
        size = math.prod(mesh.shape[axis] for axis in wanted)
        if size > 1 and not taken & set(wanted) and shape[dimension] % size == 0:
            assigned[dimension] = target if isinstance(target, str) else wanted
            settled.add(logical)
            taken |= set(wanted)
    while assigned and assigned[-1] is None:
        assigned.pop()
    return PartitionSpec(*assigned)
