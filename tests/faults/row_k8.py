"""K8: a run wants to go on from a checkpoint of another config, or of another state."""

import copy
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.checkpoint import CheckpointManager
from clipjax.config import to_plain
from tests.faults.row import Row, Trial
from tests.faults.tiny_run import get_config

# Another value of a key of the config. Those of the first group are refused whatever is allowed,
# those of the second without allow_config_change, with which a warning names them.
FATAL: dict[str, Any] = {
    "batch_size": 64,
    "seed": 5,
    "optimizer.name": "lion",
    "optimizer.mu_dtype": "bfloat16",
    "model.embed_dim": 16,
    "model.image_size": 64,
    "model.image.patch_size": 16,
    "model.image.width": 64,
    "model.image.depth": 3,
    "model.image.num_heads": 4,
    "model.image.mlp_dim": 128,
    "model.image.activation": "quick_gelu",
    "model.image.layer_norm_eps": 1e-6,
    "model.image.pooling": "cls",
    "model.image.patch_dropout": 0.5,
    "model.text.vocab_size": 50000,
    "model.text.context_length": 32,
    "model.text.width": 64,
    "model.text.depth": 3,
    "model.text.pooling": "last",
    "model.preprocess.interpolation": "bilinear",
    "model.logit_scale.max": 50.0,
}
ASK: dict[str, Any] = {
    "total_steps": 48,
    "dtype": "bfloat16",
    "optimizer.learning_rate": 0.5,
    "optimizer.weight_decay": 0.5,
    "optimizer.b1": 0.5,
    "optimizer.b2": 0.5,
    "schedule.warmup_steps": 3,
    "loss.name": "siglip",
}
TOP: dict[str, Any] = {
    "dataset_fingerprint": "another",
    "global_batch_size": 64,
    "seed": 5,
    "contract.model.image.activation": "quick_gelu",
    "contract.model.text.context_length": 32,
    "contract.tokenizer.sha256": "cd",
}
LEAVES = ("params/image/kernel", "params/text/kernel", "mu/image", "params/scale")
TREE = ("dtype", "shape", "missing", "extra", "renamed", "transposed")


def metadata() -> dict[str, Any]:
    """What a manifest holds of the run."""
    model = {"image": {"activation": "gelu"}, "text": {"context_length": 16}}
    return {
        "config": to_plain(get_config()),
        "contract": {"model": model, "tokenizer": {"sha256": "ab"}},
        "dataset_fingerprint": "one",
        "global_batch_size": 32,
        "seed": 0,
    }


def state() -> dict[str, Any]:
    """A small state."""
    kernel = jnp.arange(12.0).reshape(3, 4)
    params = {"image": {"kernel": kernel}, "text": {"kernel": kernel * 2}, "scale": jnp.ones((2,))}
    return {"step": jnp.int32(0), "params": params, "mu": {"image": kernel}}


def cases() -> list[tuple[str, str, Any]]:
    """(kind, key, value) of each mismatch."""
    of_config = [("fatal", f"config.{key}", value) for key, value in FATAL.items()]
    of_config += [("ask", f"config.{key}", value) for key, value in ASK.items()]
    of_config += [("fatal", key, value) for key, value in TOP.items()]
    return of_config + [("tree", leaf, change) for leaf in LEAVES for change in TREE]


def put(tree: Any, key: str, value: Any) -> Any:
    """Sets the value of a dotted key, which is there; returns what it was."""
    *folders, last = key.split(".")
    for folder in folders:
        tree = tree[folder]
    old, tree[last] = tree[last], value
    return old


def changed_leaf(tree: dict[str, Any], name: str, change: str) -> tuple[list[str], list[str]]:
    """Changes a leaf of a state; returns the names and the values that a refusal must name."""
    *folders, last = name.split("/")
    node = tree
    for folder in folders:
        node = node[folder]
    leaf = node[last]
    old = f"{list(leaf.shape)} {leaf.dtype}"
    parent = "/".join(folders)
    if change == "missing":
        del node[last]
        node["kept"] = jnp.zeros((7,))
        return [name, f"{parent}/kept"], [old, "[7] float32", "absent"]
    if change == "extra":
        node["extra"] = leaf
        return [f"{parent}/extra"], [old, "absent"]
    if change == "renamed":
        node[f"{last}_1"] = node.pop(last)
        return [name, f"{parent}/{last}_1"], [old, "absent"]
    new = {
        "dtype": leaf.astype(jnp.bfloat16),
        "shape": jnp.concatenate([leaf, leaf]),
        "transposed": jnp.zeros((*leaf.shape[::-1], 1)),
    }[change]
    node[last] = new
    return [name], [old, f"{list(new.shape)} {new.dtype}"]


class Told(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def restore(folder: Path, about: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Goes on from the checkpoint; returns the refusal, or what was logged and nothing was."""
    told = Told()
    logger = logging.getLogger("absl")
    logger.addHandler(told)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
    )
    try:
        with CheckpointManager(folder / "checkpoints", keep=2, metadata=about) as manager:
            restored = manager.restore_latest(abstract)
            assert restored is not None
    except ValueError as error:
        return f"REFUSED {error}"
    finally:
        logger.removeHandler(told)
    return "\n".join(told.lines)


def strike(trial: Trial, *, change: bool = True) -> None:
    """One mismatch."""
    with CheckpointManager(trial.folder / "checkpoints", keep=2, metadata=metadata()) as manager:
        manager.save(4, state(), block=True)
    kind, key, value = cases()[trial.index]
    about, wanted = metadata(), state()
    if not change:
        told = restore(trial.folder, about, wanted)
        assert told.startswith("REFUSED"), "what is the same is not refused"
    if kind == "tree":
        names, values = changed_leaf(wanted, key, value)
    else:
        old = put(about, key, copy.deepcopy(value))
        names, values = [key], [repr(old), repr(value)]
    told = restore(trial.folder, about, wanted)
    assert told.startswith("REFUSED"), f"{key}: not refused: {told}"
    lacking = [x for x in names + values if x not in told]
    assert not lacking, f"{key}: {lacking} not in {told}"
    if kind == "tree":
        return
    about["config"]["allow_config_change"] = True
    told = restore(trial.folder, about, wanted)
    assert told.startswith("REFUSED") == (kind == "fatal"), f"{key}, allowed: {told}"
    lacking = [x for x in names + values if x not in told]
    assert not lacking, f"{key}, allowed: {lacking} not in {told}"


ROWS = [
    Row(
        name="K8",
        fault="a resume with one changed value of the config, the data, the model or the "
        "tokenizer, or with one leaf of another type, shape or name",
        holds="it is refused, or flagged where the change is allowed; the message names the path "
        "and both values",
        trials=len(cases()),
        default=2,
        run=strike,
        control=lambda trial: strike(trial, change=False),
        others="MaxText: one mismatch must raise and name the paths; axlearn: structure, shape "
        "and type in three modes; Orbax casts another type silently",
    ),
]
