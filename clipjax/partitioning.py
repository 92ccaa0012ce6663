"""Sharding: the mesh, one table of rules, and the shardings that follow from them.

Layers name the LOGICAL axes of their parameters and activations; only this module knows which
MESH axes those fall on. Data parallelism, ZeRO-1 (arXiv:1910.02054), fully sharded data
parallelism and tensor parallelism (arXiv:1909.08053) are rows of `LOGICAL_AXIS_RULES`, not code.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clipjax.trees import flatten_with_names, map_with_names, path_name

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# A rule sends a logical axis to mesh axes. For each array the rules are tried from the top; one
# applies if the array has the logical axis, none of its mesh axes is taken, and the dimension
# divides by their size. `batch` stands first, so that an activation keeps its batch axes.
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

# A parameter above this many elements that stays whole on every device, under rules that are there
# to shard parameters, is a mistake in the rules.
LARGE_PARAMETER = 2**20


def rules_of(name: str, overrides: Sequence[Rule] = ()) -> ShardingRules:
    """Looks a table of rules up and puts a config's own rules in front.

    Raises:
        ValueError: an unknown name.
    """
    if name not in LOGICAL_AXIS_RULES:
        raise ValueError(
            f"config.sharding = {name!r} is unknown; allowed are {', '.join(LOGICAL_AXIS_RULES)}"
        )
    table = LOGICAL_AXIS_RULES[name]
    own = tuple((axis, tuple(m) if isinstance(m, list) else m) for axis, m in overrides)
    return ShardingRules(own + table.params, own + table.optimizer)


def mesh_shape(axis_sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Resolves the one -1 of a mesh and checks it against the devices.

    Raises:
        ValueError: an unknown axis, or a product that is not the number of devices.
    """
    unknown = set(axis_sizes) - set(MESH_AXES)
    if unknown:
        raise ValueError(f"config.mesh.{sorted(unknown)[0]}: axes are {', '.join(MESH_AXES)}")
    sizes = {axis: int(axis_sizes.get(axis, 1)) for axis in MESH_AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) == 1 and num_devices % known == 0:
        sizes[free[0]] = num_devices // known
    if len(free) > 1 or math.prod(sizes.values()) != num_devices:
        raise ValueError(
            f"config.mesh = {dict(axis_sizes)} does not fit {num_devices} devices; "
            "the product of the axes must be their number (one axis may be -1)"
        )
    return sizes


def make_mesh(axis_sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh (data, fsdp, tensor); one size may be -1, for the rest of the devices."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_shape(axis_sizes, len(devices))
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first dimension over the axes data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def num_batch_shards(mesh: Mesh) -> int:
    """Parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of this process's rows of a batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def logical_axes(boxed_params: Any) -> dict[str, tuple[str | None, ...]]:
    """Lists the logical axes of every parameter by name, from flax's metadata."""
    leaves = jax.tree_util.tree_leaves_with_path(
        nn.get_partition_spec(boxed_params), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    return {path_name(path): tuple(spec) for path, spec in leaves}


def spec_of(
    axes: Sequence[str | None], shape: Sequence[int], rules: Sequence[Rule], mesh: Mesh
) -> PartitionSpec:
    """Applies rules to one array.

    Args:
        axes: logical axis of each dimension, or None.
        shape: of the array.
        rules: tried from the top.
        mesh: gives the sizes of the mesh axes.
    """
    assigned: list[Any] = [None] * len(shape)
    taken: set[str] = set()
    for logical, target in rules:
        if logical not in axes or target is None:
            continue
        dimension = list(axes).index(logical)
        wanted = (target,) if isinstance(target, str) else tuple(target)
        size = math.prod(mesh.shape[axis] for axis in wanted)
        if size == 1 or assigned[dimension] is not None or taken & set(wanted):
            continue
        if shape[dimension] % size == 0:
            assigned[dimension] = target if isinstance(target, str) else wanted
            taken |= set(wanted)
    while assigned and assigned[-1] is None:
        assigned.pop()
    return PartitionSpec(*assigned)


def state_shardings(
    abstract_state: Any,
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh,
    rules: ShardingRules,
) -> Any:
    """Infers the sharding of every leaf of a train state.

    A leaf of the optimizer's state (or of an average) belongs to the parameter whose name ends its
    own and whose shape it has; what belongs to none is replicated.

    Args:
        abstract_state: shapes of the state, with the parameters under `params`.
        axes: logical axes of the parameters by name, from `logical_axes`.
        mesh: the mesh.
        rules: for parameters and for the rest.

    Raises:
        ValueError: a large parameter that rules which shard parameters leave whole.
    """
    shards_params = any(logical != "batch" for logical, _ in rules.params)
    shapes = {name: leaf.shape for name, leaf in flatten_with_names(abstract_state.params)}

    def sharding_of(name: str, leaf: Any) -> NamedSharding:
        folder, _, rest = name.partition("/")
        if folder == "params":
            spec = spec_of(axes[rest], leaf.shape, rules.params, mesh)
            size = math.prod(leaf.shape)
            num_model_shards = mesh.shape["fsdp"] * mesh.shape["tensor"]
            whole = spec == PartitionSpec() and num_model_shards > 1
            if shards_params and whole and size > LARGE_PARAMETER:
                raise ValueError(
                    f"parameter {rest!r} {leaf.shape} with logical axes {axes[rest]} stays whole "
                    f"on all devices: no sharding rule fits the mesh {dict(mesh.shape)}; "
                    "add a rule to config.logical_axes"
                )
            return NamedSharding(mesh, spec)
        owner = _owner(rest, leaf.shape, shapes)
        if owner is None:
            return replicated(mesh)
        return NamedSharding(mesh, spec_of(axes[owner], leaf.shape, rules.optimizer, mesh))

    return map_with_names(sharding_of, abstract_state)


def _owner(
    name: str, shape: tuple[int, ...], parameters: Mapping[str, tuple[int, ...]]
) -> str | None:
    parts = name.split("/")
    for start in range(len(parts)):
        candidate = "/".join(parts[start:])
        if parameters.get(candidate) == shape:
            return candidate
    return None
