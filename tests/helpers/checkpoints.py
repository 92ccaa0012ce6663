"""A checkpoint of a model that nobody trained."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from clipjax.checkpoint import StreamedLeaf, attach_tokenizer, make_contract, write_step
from clipjax.models import abstract_variables
from clipjax.tokenizers import make_tokenizer
from clipjax.trees import flatten_with_names


def write_checkpoint(workdir, spec, params=None, *, step=1, config=None, plugins=()):
    """Writes parameters, which are random where none are given; returns the step's folder."""
    tokenizer = make_tokenizer(
        spec["tokenizer"], context_length=spec["text"]["context_length"], plugins=plugins
    )
    contract, files = attach_tokenizer(make_contract(spec, tokenizer.contract(), plugins=plugins))
    if params is None:
        params = _random(abstract_variables(spec, plugins)["params"])
    else:
        params = dict(flatten_with_names(params))
    leaves = [
        StreamedLeaf(f"params/{name}", value.shape, 1, lambda value=value: [np.asarray(value)])
        for name, value in params.items()
    ]
    metadata = {
        "config": config or {},
        "contract": contract,
        "dataset_fingerprint": "",
        "global_batch_size": 8,
        "seed": 0,
    }
    step_dir = Path(workdir) / "checkpoints" / str(step)
    write_step(step_dir, step, leaves, metadata, files)
    return step_dir


def _random(shapes):
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=leaf.shape, scale=0.1).astype(np.float32)
        for name, leaf in flatten_with_names(shapes)
    }


def saved_arrays(step_dir):
    """name -> array of a step's folder, whole, read by Orbax alone onto this host."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        path = (step_dir / "state").absolute()
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return dict(flatten_with_names(tree))
