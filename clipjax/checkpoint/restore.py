"""Reading a state back: through Orbax, onto any mesh, checked leaf by leaf."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint.manifest import DamagedCheckpointError, Manifest
from clipjax.checkpoint.processes import all_succeeded
from clipjax.checkpoint.snapshot import host_value
from clipjax.trees import flatten_with_names

STATE = "state"


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
    manifests.check_leaves(manifest.leaves, abstract_state, where=str(step_dir))
    state = restore_tree(step_dir, abstract_state)
    try:
        verify_state(manifest, state)
        error = None
    except DamagedCheckpointError as found:
        error = found
    # Each process checks what it holds; one of them may see what the others cannot.
    if not all_succeeded(error is None):
        raise error or DamagedCheckpointError(f"{step_dir}: another process found a damaged leaf")
    return state


def restore_tree(step_dir: Path, abstract_tree: Any, *, partial: bool = False) -> Any:
    """Restores a tree, or with `partial` a part of it, from a step folder through Orbax."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read_as(leaf: Any) -> jax.ShapeDtypeStruct:
        # Orbax reads a replicated array once a device; once a process is enough.
        sharding = leaf.sharding
        if sharding is None or sharding.is_fully_replicated:
            sharding = here
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def place(leaf: jax.Array, wanted: Any) -> jax.Array:
        if wanted.sharding is None or wanted.sharding == leaf.sharding:
            return leaf
        value = jax.device_get(leaf)
        return jax.make_array_from_callback(leaf.shape, wanted.sharding, lambda index: value[index])

    to_read = jax.tree.map(read_as, abstract_tree)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(
            (step_dir / STATE).absolute(),
            args=ocp.args.PyTreeRestore(
                item=to_read,
                restore_args=ocp.checkpoint_utils.construct_restore_args(to_read),
                partial_restore=partial,
            ),
        )
    # Of a part, Orbax passes over what its own list of arrays does not name.
    absent = [name for name, leaf in flatten_with_names(tree) if not isinstance(leaf, jax.Array)]
    if absent:
        raise DamagedCheckpointError(
            f"{step_dir / STATE} lacks {len(absent)} of the arrays that the manifest names, the "
            f"first is {absent[0]}"
        )
    return jax.tree.map(place, tree, abstract_tree)


def verify_state(manifest: Manifest, tree: Any) -> None:
    """Checks the arrays that this process holds whole against the manifest's digests.

    Raises:
        DamagedCheckpointError: names the first leaf that differs.
    """
    by_name = {record.name: record for record in manifest.leaves}
    for name, leaf in flatten_with_names(tree):
        value = host_value(leaf)
        if value is not None:
            manifests.verify_leaves([by_name[name]], {name: value})
