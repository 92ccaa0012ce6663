"""The sharding of a train state, by the rules; and what they leave whole."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import optax
from absl import logging
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from clipjax.partitioning.mesh import BATCH_AXES, MESH_AXES, num_batch_shards
from clipjax.partitioning.rules import Rule, ShardingRules, spec_of
from clipjax.ranges import FieldError
from clipjax.trees import flatten_with_names, map_with_names

# A parameter above this many elements that stays whole on every device, under rules that are there
# to shard parameters, is a mistake in the rules.
LARGE_PARAMETER = 2**20
# Optimizer state in bytes that each device may hold beyond its share before that is worth a word.
LARGE_STATE = 2**26


def stacked_axes(*blocks: PartitionSpec) -> PartitionSpec:
    """The logical axes of equal leaves, stacked as the layers of a scan are."""
    return PartitionSpec("layers", *blocks[0])


def state_axes(abstract_state: Any, axes: Any, tx: optax.GradientTransformation) -> Any:
    """Lists the logical axes of every leaf of a train state.

    What the optimizer keeps of a parameter in its shape has its axes, and so has an average. All
    else has none: counts, or moments that are kept in another shape.

    Args:
        abstract_state: shapes of the state: `params`, `opt_state`, `ema_params` and others.
        axes: of the variables, by collection: trees of `PartitionSpec` over logical axes, from
            `boxed_axes`.
        tx: the optimizer, which knows what of its state is kept of the parameters.

    Returns:
        The state's tree, of `PartitionSpec` over logical axes.

    Raises:
        ValueError: the optimizer's `init` takes no stand-in for the parameters.
    """
    kept_axes = dict(axes)
    param_axes = kept_axes.pop("params")

    def axes_of(tree: Any) -> Any:
        # Of each parameter there may be one leaf, several, or none where it is frozen.
        return jax.tree.map(
            lambda param, axes, kept: jax.tree.map(
                lambda leaf: axes if leaf.shape == param.shape else PartitionSpec(), kept
            ),
            abstract_state.params,
            param_axes,
            tree,
        )

    def none(leaf: Any) -> PartitionSpec:
        del leaf
        return PartitionSpec()

    try:
        opt_state = optax.tree_map_params(
            tx,
            axes_of,
            abstract_state.opt_state,
            transform_non_params=none,
            is_leaf=lambda _: True,  # whole trees that are like the parameters'
        )
    except Exception as error:  # whatever a part of somebody else's raises
        raise ValueError(
            "the optimizer does not say what it keeps of which parameter: its init has to make its "
            "state by jax.tree.map over the parameters alone, as optax.tree_map_params asks "
            f"({type(error).__name__}: {error})"
        ) from error
    averages = abstract_state.averages
    if averages is not None:
        averages = {name: axes_of(average) for name, average in averages.items()}
    return jax.tree.map(none, abstract_state).replace(
        params=param_axes,
        model_state=kept_axes,
        ema_params=None if abstract_state.ema_params is None else param_axes,
        averages=averages,
        opt_state=opt_state,
    )


def state_shardings(abstract_state: Any, axes: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """Infers the sharding of every leaf of a train state.

    Optimizer state that the rules are there to shard and every device yet holds whole is named in
    a warning.

    Raises:
        ValueError: a large parameter that rules which shard parameters leave whole, or a mesh axis
            that no rule uses.
    """
    # The axes data and fsdp carry the batch; without a rule, `tensor` carries nothing.
    if mesh.shape["tensor"] > 1 and "tensor" not in _axes_used(rules.params):
        raise FieldError(
            f"mesh.tensor = {mesh.shape['tensor']}, but no rule of the sharding sends anything "
            "there: its devices would repeat each other's work; set mesh.tensor=1, or "
            "sharding='tensor', or add rules such as ('mlp', 'tensor') to logical_axes"
        )
    specs = _state_specs(abstract_state, axes, mesh, rules)
    shards_params = any(logical != "batch" for logical, _ in rules.params)
    if shards_params and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1:
        leaves = flatten_with_names(abstract_state.params)
        trees = [jax.tree.leaves(tree) for tree in (axes.params, specs.params)]
        for (name, leaf), names, spec in zip(leaves, *trees, strict=True):
            if spec == PartitionSpec() and math.prod(leaf.shape) > LARGE_PARAMETER:
                raise ValueError(
                    f"parameter {name!r} {leaf.shape} with logical axes {tuple(names)} stays whole "
                    f"on all devices: no sharding rule fits the mesh {dict(mesh.shape)}; choose "
                    "sizes that divide one of its widths, or add a rule to logical_axes"
                )
    note = unsharded_state(abstract_state, axes, mesh, rules)
    if note and jax.process_index() == 0:
        logging.warning("%s", note)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def _axes_used(rules: Sequence[Rule]) -> set[str]:
    """The mesh axes that rules send anything but the batch to."""
    targets = [target for logical, target in rules if logical != "batch" and target is not None]
    return {
        axis for target in targets for axis in ((target,) if isinstance(target, str) else target)
    }


def _state_specs(
    abstract_state: Any, axes: Any, mesh: Mesh | AbstractMesh, rules: ShardingRules
) -> Any:
    """The tree of the specs of every leaf."""

    def spec(name: str, leaf: Any, names: PartitionSpec) -> PartitionSpec:
        is_own = name.startswith(("params/", "model_state/"))
        wanted = rules.params if is_own else rules.optimizer
        return spec_of(tuple(names), leaf.shape, wanted, mesh)

    return map_with_names(spec, abstract_state, axes)


def unsharded_state(
    abstract_state: Any, axes: Any, mesh: Mesh | AbstractMesh, rules: ShardingRules
) -> str | None:
    """Says how much optimizer state a device holds beyond its share, and which mesh would mend it.

    A dimension is cut by whole mesh axes. Where no width of an array divides by all the devices of
    `data`, the array stays whole on each of them; cut in two axes, data x fsdp, the same devices
    can share two of its dimensions. The batch lies over both axes either way.

    Returns:
        A sentence, or None where the state lies as the rules mean it to, to `LARGE_STATE` bytes.
    """
    if not set(BATCH_AXES) <= _axes_used(rules.optimizer):
        return None  # these rules are not there to share the state among all devices
    leaves = jax.tree.leaves(abstract_state.replace(params=None))

    def held(data: int, fsdp: int) -> int:
        cut = AbstractMesh((data, fsdp, mesh.shape["tensor"]), MESH_AXES)
        specs = _state_specs(abstract_state, axes, cut, rules).replace(params=None)
        return sum(
            math.prod(NamedSharding(cut, spec).shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf, spec in zip(leaves, jax.tree.leaves(specs), strict=True)
        )

    devices = num_batch_shards(mesh)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    here = held(data, fsdp)
    if here - total / devices <= LARGE_STATE:
        return None
    cuts = {f: held(devices // f, f) for f in range(1, devices + 1) if devices % f == 0}
    better = next(f for f, size in cuts.items() if size <= 1.1 * min(cuts.values()))
    note = (
        f"each device holds {here / 1e6:,.0f} MB of the optimizer's state, not its share of "
        f"{total / devices / 1e6:,.1f} MB: not every width of the model divides by "
        f"the mesh's data={data} x fsdp={fsdp}; "
    )
    if here - cuts[better] <= LARGE_STATE:
        return note + "nor by another cut of these devices: take another number of them"
    return note + (
        f"a mesh of data={devices // better} x fsdp={better} leaves {cuts[better] / 1e6:,.1f} MB"
    )
