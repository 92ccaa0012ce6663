"""The sharding of a train state, by the rules; and what they leave whole."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from clipjax.partitioning.mesh import BATCH_AXES, MESH_AXES, num_batch_shards
from clipjax.partitioning.rules import Rule, ShardingRules, spec_of
from clipjax.trees import flatten_with_names, map_with_names, path_name

# A parameter above this many elements that stays whole on every device, under rules that are there
# to shard parameters, is a mistake in the rules.
LARGE_PARAMETER = 2**20
# Optimizer state in bytes that each device may hold beyond its share before that is worth a word.
LARGE_STATE = 2**26


def logical_axes(boxed_params: Any) -> dict[str, tuple[str | None, ...]]:
    """Lists the logical axes of every parameter by name, from flax's metadata."""
    leaves = jax.tree_util.tree_leaves_with_path(
        nn.get_partition_spec(boxed_params), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    return {path_name(path): tuple(spec) for path, spec in leaves}


def state_shardings(
    abstract_state: Any,
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh,
    rules: ShardingRules,
) -> Any:
    """Infers the sharding of every leaf of a train state.

    A leaf of the optimizer's state (or of an average) belongs to the parameter whose name ends its
    own and whose shape it has; what belongs to none is replicated. Optimizer state that the rules
    are there to shard and every device yet holds whole is named in a warning.

    Args:
        abstract_state: shapes of the state, with the parameters under `params`.
        axes: logical axes of the parameters by name, from `logical_axes`.
        mesh: the mesh.
        rules: for parameters and for the rest.

    Raises:
        ValueError: a large parameter that rules which shard parameters leave whole, or a mesh axis
            that no rule uses.
    """
    _check_tensor_axis(mesh, rules)
    specs = _state_specs(abstract_state, axes, mesh, rules)
    shards_params = any(logical != "batch" for logical, _ in rules.params)
    if shards_params and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1:
        for name, leaf in flatten_with_names(abstract_state.params):
            whole = specs[f"params/{name}"] == PartitionSpec()
            if whole and math.prod(leaf.shape) > LARGE_PARAMETER:
                raise ValueError(
                    f"parameter {name!r} {leaf.shape} with logical axes {axes[name]} stays whole "
                    f"on all devices: no sharding rule fits the mesh {dict(mesh.shape)}; choose "
                    "sizes that divide one of its widths, or add a rule to config.logical_axes"
                )
    note = unsharded_state(abstract_state, axes, mesh, rules)
    if note and jax.process_index() == 0:
        logging.warning("%s", note)
    return map_with_names(lambda name, _: NamedSharding(mesh, specs[name]), abstract_state)


def _check_tensor_axis(mesh: Mesh, rules: ShardingRules) -> None:
    """The axes data and fsdp carry the batch; without a rule, `tensor` carries nothing."""
    if mesh.shape["tensor"] > 1 and "tensor" not in _axes_used(rules.params):
        raise ValueError(
            f"config.mesh.tensor = {mesh.shape['tensor']}, but no rule of config.sharding sends "
            "anything there: its devices would repeat each other's work; set config.mesh.tensor=1, "
            "or config.sharding='tensor', or add rules such as ('mlp', 'tensor') to "
            "config.logical_axes"
        )


def _axes_used(rules: Sequence[Rule]) -> set[str]:
    """The mesh axes that rules send anything but the batch to."""
    targets = [target for logical, target in rules if logical != "batch" and target is not None]
    return {
        axis for target in targets for axis in ((target,) if isinstance(target, str) else target)
    }


def _state_specs(
    abstract_state: Any,
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh | AbstractMesh,
    rules: ShardingRules,
) -> dict[str, PartitionSpec]:
    """The spec of every leaf by name."""
    shapes = {name: leaf.shape for name, leaf in flatten_with_names(abstract_state.params)}
    specs = {}
    for name, leaf in flatten_with_names(abstract_state):
        folder, _, rest = name.partition("/")
        is_parameter = folder == "params"
        owner = rest if is_parameter else _owner(rest, leaf.shape, shapes)
        specs[name] = PartitionSpec()
        if owner is not None:
            wanted = rules.params if is_parameter else rules.optimizer
            specs[name] = spec_of(axes[owner], leaf.shape, wanted, mesh)
    return specs


def unsharded_state(
    abstract_state: Any,
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh | AbstractMesh,
    rules: ShardingRules,
) -> str | None:
    """Says how much optimizer state a device holds beyond its share, and which mesh would mend it.

    A dimension is cut by whole mesh axes. Where no width of an array divides by all the devices of
    `data`, the array stays whole on each of them; cut in two axes, data x fsdp, the same devices
    can share two of its dimensions. The batch lies over both axes either way.

    Args:
        abstract_state: as for `state_shardings`, and so the rest.
        axes: of the parameters by name.
        mesh: the mesh.
        rules: for parameters and for the rest.

    Returns:
        A sentence, or None where the state lies as the rules mean it to, to `LARGE_STATE` bytes.
    """
    if not set(BATCH_AXES) <= _axes_used(rules.optimizer):
        return None  # these rules are not there to share the state among all devices
    leaves = flatten_with_names(abstract_state)
    state = [(name, leaf) for name, leaf in leaves if not name.startswith("params/")]

    def held(data: int, fsdp: int) -> int:
        cut = AbstractMesh((data, fsdp, mesh.shape["tensor"]), MESH_AXES)
        specs = _state_specs(abstract_state, axes, cut, rules)
        return sum(
            math.prod(NamedSharding(cut, specs[name]).shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for name, leaf in state
        )

    devices = num_batch_shards(mesh)
    total = sum(leaf.size * leaf.dtype.itemsize for _, leaf in state)
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    here = held(data, fsdp)
    if here - total / devices <= LARGE_STATE:
        return None
    cuts = {f: held(devices // f, f) for f in range(1, devices + 1) if devices % f == 0}
    better = next(f for f, size in cuts.items() if size <= 1.1 * min(cuts.values()))
    note = (
        f"each device holds {here / 1e6:,.0f} MB of the optimizer's state, not its share of "
        f"{total / devices / 1e6:,.1f} MB: not every width of the model divides by "
        f"config.mesh data={data} x fsdp={fsdp}; "
    )
    if here - cuts[better] <= LARGE_STATE:
        return note + "nor by another cut of these devices: take another number of them"
    return note + (
        f"--config.mesh.data={devices // better} --config.mesh.fsdp={better} leaves "
        f"{cuts[better] / 1e6:,.1f} MB"
    )


def _owner(
    name: str, shape: tuple[int, ...], parameters: Mapping[str, tuple[int, ...]]
) -> str | None:
    parts = name.split("/")
    for start in range(len(parts)):
        candidate = "/".join(parts[start:])
        if parameters.get(candidate) == shape:
            return candidate
    return None
