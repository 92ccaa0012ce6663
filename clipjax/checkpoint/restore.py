"""Reading a step back through Orbax, onto any mesh, checked leaf by leaf.

A run that goes on takes the whole state; evaluation and fine-tuning take its parameters only.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from clipjax import faults, spike_guard
from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint.choice import naming_older_steps
from clipjax.checkpoint.manifest import DamagedCheckpointError, LeafRecord, Manifest
from clipjax.checkpoint.snapshot import host_value
from clipjax.data.storage.retrying import is_missing, retry
from clipjax.losses.objectives import is_of_objective
from clipjax.models.layers_layout import laid_out_like
from clipjax.models.lora import LORA, merged_on_host
from clipjax.processes.distributed import gather_errors
from clipjax.trees import flatten_with_names, unflatten_names

STATE = "state"
GUARD = "spike_guard"  # the only part of a state that another run of the same model may lack
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")


def restore_step(step_dir: Path, manifest: Manifest, abstract_state: Any) -> Any:
    """Restores the state of a step folder whose files are verified.

    Args:
        step_dir: the folder.
        manifest: its manifest.
        abstract_state: tree of `jax.ShapeDtypeStruct` with the shardings to restore to; they need
            not be those that it was saved with. A leaf without one goes to this process's first
            device.

    Raises:
        ValueError: the state has another tree, shape or dtype than the checkpoint.
        DamagedCheckpointError: a leaf is not what was saved.
    """
    guard = getattr(abstract_state, "spike_guard", None)
    leaves = manifest.leaves
    if (guard is not None) != (GUARD in manifest.roots):  # it was switched on or off since
        leaves = tuple(leaf for leaf in leaves if not leaf.name.startswith(f"{GUARD}/"))
        if guard is not None:
            without = restore_step(step_dir, manifest, abstract_state.replace(spike_guard=None))
            return without.replace(spike_guard=jax.tree.map(_place, spike_guard.init(), guard))
    wanted = _as_saved(manifest, abstract_state)
    check_leaves(leaves, wanted, where=str(step_dir))
    state = restore_tree(step_dir, wanted, partial=len(leaves) < len(manifest.leaves))
    try:
        verify_state(manifest, state)
        error = None
    except DamagedCheckpointError as found:
        error = found
    # Each process checks what it holds; one of them may see what the others cannot.
    if failed := gather_errors(error):
        raise error or DamagedCheckpointError(f"{step_dir}: {failed}")
    if wanted is abstract_state:
        return state
    stack = jax.jit(  # where the blocks lie: one device may not hold them all
        lambda state: laid_out_like(state, abstract_state.params),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract_state),
    )
    return stack(state)


def _as_saved(manifest: Manifest, abstract_state: Any) -> Any:
    """The state as a checkpoint has it: the blocks of a tower were once saved apart."""
    if not any("/block_0/" in record.name for record in manifest.leaves):
        return abstract_state
    saved = [record for record in manifest.leaves if record.name.startswith("params/")]
    like = unflatten_names({record.name.removeprefix("params/"): record for record in saved})
    stacks = jax.tree.map(
        lambda leaf: _Stack(leaf.shape, leaf.dtype, sharding=leaf.sharding), abstract_state
    )
    wanted = laid_out_like(stacks, like, stack=_abstract_stack)
    # A tower of one's own may have blocks apart in both: nothing is to be stacked then.
    ours, theirs = (
        {name for name, _ in flatten_with_names(tree)} for tree in (abstract_state, wanted)
    )
    return abstract_state if ours == theirs else wanted


class _Stack(jax.ShapeDtypeStruct):
    """A leaf whose blocks have its sharding, less that of the layers; `eval_shape` drops it."""

    def __getitem__(self, index: int) -> jax.ShapeDtypeStruct:
        sharding = _with_spec(self.sharding, lambda spec: spec[1:])
        return jax.ShapeDtypeStruct(self.shape[1:], self.dtype, sharding=sharding)


def _abstract_stack(*blocks: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = _with_spec(blocks[0].sharding, lambda spec: (None, *spec))
    shape = (len(blocks), *blocks[0].shape)
    return jax.ShapeDtypeStruct(shape, blocks[0].dtype, sharding=sharding)


def _with_spec(sharding: Any, change: Callable[[Any], Iterable[Any]]) -> Any:
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = PartitionSpec(*change(tuple(sharding.spec)))
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def restore_tree(step_dir: Path, abstract_tree: Any, *, partial: bool = False) -> Any:
    """Restores a tree, or with `partial` a part of it, from a step folder through Orbax."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read_as(leaf: Any) -> jax.ShapeDtypeStruct:
        # Orbax reads a replicated array once a device; once a process is enough.
        sharding = leaf.sharding
        if sharding is None or sharding.is_fully_replicated:
            sharding = here
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def place_leaf(leaf: jax.Array, wanted: Any) -> jax.Array:
        if wanted.sharding is None or wanted.sharding == leaf.sharding:
            return leaf
        return _place(leaf, wanted)

    to_read = jax.tree.map(read_as, abstract_tree)

    def read() -> Any:
        with system_errors(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            faults.point("checkpoint.restore")
            return checkpointer.restore(
                (step_dir / STATE).absolute(),
                args=ocp.args.PyTreeRestore(
                    item=to_read,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(to_read),
                    partial_restore=partial,
                ),
            )

    # All processes read together, so one of several cannot try again by itself.
    tree = retry(read, f"restoring {step_dir}") if jax.process_count() == 1 else read()
    # Of a part, Orbax passes over what its own list of arrays does not name.
    absent = [name for name, leaf in flatten_with_names(tree) if not isinstance(leaf, jax.Array)]
    if absent:
        raise DamagedCheckpointError(
            f"{step_dir / STATE} lacks {len(absent)} of the arrays that the manifest names, the "
            f"first is {absent[0]}"
        )
    return jax.tree.map(place_leaf, tree, abstract_tree)


def _place(leaf: Any, wanted: Any) -> jax.Array:
    """Lays an array, whole in each process, over the devices."""
    value = np.asarray(jax.device_get(leaf))
    return jax.make_array_from_callback(leaf.shape, wanted.sharding, lambda index: value[index])


@contextmanager
def system_errors() -> Iterator[None]:
    """Raises as an OSError what Tensorstore tells as a ValueError with an error of the system."""
    try:
        yield
    except ValueError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None or is_missing(system := OSError(int(found[1]), str(error))):
            raise
        raise system from error


def verify_state(manifest: Manifest, tree: Any) -> None:
    """Checks the arrays, or blocks, that this process holds whole against their digests.

    Raises:
        DamagedCheckpointError: names the first leaf that differs.
    """
    records = {record.name: record for record in manifest.leaves}
    for name, leaf in flatten_with_names(tree):
        for index, digest in records[name].digests():
            value = host_value(leaf, index)
            if value is not None and manifests.digest_array(value) != digest:
                raise DamagedCheckpointError(
                    f"leaf {name} does not match its SHA-256 in the manifest"
                )


def check_leaves(records: Iterable[LeafRecord], abstract_state: Any, *, where: str) -> None:
    """Compares the leaves of a checkpoint with those of the state that is to be restored.

    Orbax refuses another shape or tree but silently casts to another dtype; here all three are
    errors, and all differences are named at once.

    Raises:
        ValueError: names each leaf with what the checkpoint has and what the state wants.
    """
    found = {r.name: f"{list(r.shape)} {r.dtype}" for r in records}
    wanted = {
        name: f"{list(leaf.shape)} {np.dtype(leaf.dtype).name}"
        for name, leaf in flatten_with_names(abstract_state)
    }
    names = [n for n in sorted(found.keys() | wanted.keys()) if found.get(n) != wanted.get(n)]
    if not names:
        return
    lines = [
        f"  {name}: {found.get(name, 'absent')} in the checkpoint, "
        f"{wanted.get(name, 'absent')} in the state"
        for name in names[:20]
    ]
    if len(names) > 20:
        lines.append(f"  and {len(names) - 20} more")
    raise ValueError(
        f"{where} holds another state than this run's:\n"
        + "\n".join(lines)
        + "\nUse the config it was made with, or another workdir; to take over its parameters "
        "only, set config.init.checkpoint"
    )


def load_params(
    step_dir: str | os.PathLike[str], *, objective: bool = False, which: str | None = None
) -> dict[str, Any]:
    """Loads the parameters of a checkpoint's model, the averaged ones where it has them.

    Differences of low rank are added to their kernels.

    Args:
        step_dir: of `clipjax.checkpoint.open_checkpoint`.
        which: others than those: `params`, `ema_params`, or an average of
            `config.optimizer.averages`.
        objective: with those of the objective that it was trained by, under `objective`.

    Returns:
        The parameters as a nested dict of jax.Arrays, on this process's first device.

    Raises:
        DamagedCheckpointError: the checkpoint is not what was written.
        ValueError: it holds no parameters.
    """
    manifest = manifests.read_manifest(step_dir)
    root, roots = manifest.root_of(which), manifest.roots
    if root.partition("/")[0] not in roots:
        raise ValueError(f"{step_dir} holds no {root}; it holds {', '.join(sorted(roots))}")
    found = _load_root(Path(step_dir), manifest, root, objective=objective)
    if root.startswith("averages/"):
        whole = _load_root(Path(step_dir), manifest, "params", objective=objective)  # the frozen
        leaves = {**dict(flatten_with_names(whole)), **dict(flatten_with_names(found))}
        found = unflatten_names(leaves)
    if LORA in found:
        rank, alpha = manifest.lora
        found = jax.tree.map(jnp.asarray, merged_on_host(found, alpha / rank))
    return found


def load_model_state(step_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads the model's running statistics, such as those of batch norm; {} if it has none.

    Raises:
        DamagedCheckpointError: the checkpoint is not what was written.
    """
    return _load_root(Path(step_dir), manifests.read_manifest(step_dir), "model_state")


def load_variables(
    step_dir: str | os.PathLike[str],
    to_layout: Callable[[Any], Any] = lambda params: params,
    which: str | None = None,
) -> dict[str, Any]:
    """Loads what a model computes with: its parameters, and its running statistics if it has any.

    Args:
        step_dir: of a step.
        to_layout: of the parameters.
        which: of them, see `load_params`.

    Returns:
        The model's variables: `{"params": ...}`, and `batch_stats` for a model that has some.
    """
    params = to_layout(load_params(step_dir, which=which))
    return {"params": params, **load_model_state(step_dir)}


def _load_root(
    step_dir: Path, manifest: Manifest, root: str, *, objective: bool = False
) -> dict[str, Any]:
    records = [
        r
        for r in manifest.leaves
        if r.name.startswith(f"{root}/") and (objective or not is_of_objective(r.name))
    ]
    if not records:
        return {}
    abstract = unflatten_names(
        {r.name: jax.ShapeDtypeStruct(r.shape, jnp.dtype(r.dtype)) for r in records}
    )
    with naming_older_steps(step_dir):
        if any(not r.digests() for r in records):
            manifests.verify_files(step_dir, manifest.files)  # nothing else vouches for these
        try:
            tree = restore_tree(step_dir, abstract, partial=True)
        except Exception as error:
            manifests.verify_files(step_dir, manifest.files)  # names the damaged file, if one is
            is_ours = isinstance(error, OSError | RuntimeError)
            if is_ours and not isinstance(error, RecursionError):
                raise  # of the disk, or of the device's memory
            text = " ".join(str(error).split())
            raise DamagedCheckpointError(
                f"{step_dir / STATE} cannot be read as the manifest says: "
                f"{type(error).__name__}: {text:.300}"
            ) from error
        try:
            verify_state(manifest, tree)
        except DamagedCheckpointError as error:
            raise DamagedCheckpointError(f"{step_dir}: {error}") from error
    for part in root.split("/"):
        tree = tree[part]
    return tree
