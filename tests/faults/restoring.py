"""`clipjax` that tells what it restored: `python -m tests.faults.restoring train --config=...`.

RESTORED names a folder for a JSON of each process: leaf -> the part of it on a device -> SHA-256.
SPOIL=1 spoils the parameters behind that, which a comparison of the losses has to see.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np

from clipjax.checkpoint import manager
from clipjax.cli.main import run
from clipjax.files import sha256
from clipjax.trees import flatten_with_names


def digests_of(leaf):
    """Part of the array, as text -> SHA-256 of its bytes."""
    found = {}
    for shard in leaf.addressable_shards:
        parts = [part.indices(size)[:2] for part, size in zip(shard.index, leaf.shape, strict=True)]
        found[json.dumps(parts)] = sha256(np.asarray(shard.data).tobytes())
    return found


def telling(restore_step):
    def restore(*arguments):
        state = restore_step(*arguments)
        found = {name: digests_of(leaf) for name, leaf in flatten_with_names(state)}
        path = Path(os.environ["RESTORED"]) / f"{jax.process_index()}.json"
        path.write_text(json.dumps(found))
        if os.environ.get("SPOIL"):
            shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
            spoil = jax.jit(
                lambda params: jax.tree.map(lambda leaf: leaf * 1.01, params),
                out_shardings=shardings,
            )
            state = state.replace(params=spoil(state.params))
        return state

    return restore


if __name__ == "__main__":
    manager.restore_step = telling(manager.restore_step)
    run()
