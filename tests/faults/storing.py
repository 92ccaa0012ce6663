"""A run of two steps that several readers read after it was spoilt: rows K5 and K6."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.checkpoint import (
    CheckpointManager,
    DamagedCheckpointError,
    make_contract,
    spec_of_contract,
)
from clipjax.inference import Model
from clipjax.interop.reading import read_weights
from clipjax.interop.shapes import stacked_shapes
from clipjax.interop.weights import Hints
from clipjax.models import abstract_variables
from clipjax.tokenizers import make_tokenizer
from clipjax.trees import flatten_with_names, unflatten_names
from tests.faults.row import Trial
from tests.helpers.tiny import tiny_spec
from tests.helpers.vocabularies import sentencepiece_model

STEPS = (1, 2)


@functools.cache
def metadata(folder: Path) -> dict:
    file = folder / "small.model"
    file.write_bytes(sentencepiece_model())
    tower = {"depth": 1, "width": 8, "mlp_dim": 16}
    text = {**tower, "vocab_size": 64}
    spec = tiny_spec(image=tower, text=text)
    spec["tokenizer"] = {"name": "sentencepiece", "model": str(file)}
    tokenizer = make_tokenizer(spec["tokenizer"], context_length=spec["text"]["context_length"])
    return {
        "config": {"seed": 0, "total_steps": 9},
        "contract": make_contract(spec, tokenizer.contract()),
        "dataset_fingerprint": "f00d",
        "global_batch_size": 8,
        "seed": 0,
    }


@functools.cache
def state_of(folder: Path, step: int) -> dict:
    rng = np.random.default_rng(step)
    params = {
        name: jnp.asarray(rng.normal(size=leaf.shape).astype(np.float32))
        for name, leaf in flatten_with_names(shapes(folder))
    }
    params = unflatten_names(params)
    return {"params": params, "mu": jax.tree.map(lambda x: x / 2, params), "step": jnp.int32(step)}


@functools.cache
def shapes(folder: Path) -> dict:
    return abstract_variables(spec_of_contract(metadata(folder)["contract"]))["params"]


def whole_run(trial: Trial) -> Path:
    """The workdir of a run that saved two steps, made once a row."""
    workdir = trial.shared / "run"
    if not workdir.exists():
        with CheckpointManager(workdir / "checkpoints", metadata=metadata(trial.shared)) as manager:
            for step in STEPS:
                manager.save(step, state_of(trial.shared, step), block=True)
        wanted = state_of(trial.shared, STEPS[-1])["params"]  # which both read of a whole run
        assert same(Model.from_checkpoint(workdir).variables["params"], wanted)
        assert same(converted(workdir), wanted)
    return workdir


def spoilt_run(trial: Trial) -> Path:
    """A copy of the run, of one's own."""
    return Path(shutil.copytree(whole_run(trial), trial.folder / "run"))


def files_of_newest(workdir: Path) -> list[Path]:
    step_dir = workdir / "checkpoints" / str(STEPS[-1])
    return sorted(path for path in step_dir.rglob("*") if path.is_file())


def same(found, wanted) -> bool:
    found, wanted = dict(flatten_with_names(found)), dict(flatten_with_names(wanted))
    return found.keys() == wanted.keys() and all(
        np.asarray(found[name]).tobytes() == np.asarray(wanted[name]).tobytes() for name in wanted
    )


def check_readers(trial: Trial, workdir: Path, *, is_same: bool) -> None:
    """Reads a spoilt run by eval, convert and a resume: the saved values, or an error that says so.

    Args:
        trial: of the row.
        workdir: of a run whose newest step was spoilt.
        is_same: whether what was done left all as it is, such as 1e-05 for 1E-05 in JSON.
    """
    wanted = {step: state_of(trial.shared, step) for step in STEPS}
    try:
        model = Model.from_checkpoint(workdir)
        found = model.variables["params"]
        assert same(found, wanted[2]["params"]) or has_stepped_back(workdir, found, wanted), (
            "eval read other parameters without a word"
        )
    except (ValueError, DamagedCheckpointError):
        pass
    try:
        found = converted(workdir)
        assert same(found, wanted[2]["params"]) or has_stepped_back(workdir, found, wanted), (
            "convert read other parameters without a word"
        )
    except (ValueError, DamagedCheckpointError):
        pass
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted[2]
    )
    with CheckpointManager(workdir / "checkpoints", metadata=metadata(trial.shared)) as manager:
        state, step = manager.restore_latest(abstract)
    assert same(state, wanted[step]), f"resumed with another state at step {step}"
    assert is_same or step == STEPS[0], "resumed from a step that is not as it was written"
    kept = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    assert is_same or (kept[0] == "1" and kept[1] in ("2.damaged", "2.unfinished")), kept


def converted(workdir: Path) -> dict:
    """The parameters that convert reads."""
    weights = read_weights(workdir, Hints())[1]
    leaves = weights.stacked(stacked_shapes(weights.spec, weights.plugins))
    return unflatten_names({name: leaf.read() for name, leaf in leaves.items()})["params"]


def manifest_of(workdir: Path) -> Path:
    return workdir / "checkpoints" / str(STEPS[-1]) / "manifest.json"


def has_stepped_back(workdir: Path, found, wanted) -> bool:
    """Whether the older step was taken because the newer one has no manifest any more."""
    return not manifest_of(workdir).is_file() and same(found, wanted[1]["params"])


def means_the_same(path: Path, before: bytes) -> bool:
    """Whether a flip left a manifest that says the same."""
    try:
        return path.name == "manifest.json" and json.loads(path.read_bytes()) == json.loads(before)
    except ValueError:
        return False
