"""A small checkpoint that tests may bend, and the command, run in this process."""

import io
import json
import logging
import shutil
import sys
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from absl import flags
from PIL import Image

import clipjax.cli
from clipjax.checkpoint import StreamedLeaf, attach_tokenizer, make_contract, write_step
from clipjax.checkpoint import manifest as manifests
from clipjax.models import abstract_variables
from clipjax.tokenizers import make_tokenizer
from clipjax.trees import flatten_with_names

SPEC = {
    "name": "tiny",
    "embed_dim": 8,
    "image_size": 16,
    "image": {
        "name": "vit",
        "patch_size": 8,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_dim": 32,
        "activation": "gelu",
        "layer_norm_eps": 1e-5,
        "pooling": "cls",
    },
    "text": {
        "name": "causal_transformer",
        "vocab_size": 49408,
        "context_length": 16,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_dim": 32,
        "activation": "gelu",
        "layer_norm_eps": 1e-5,
        "pooling": "eot",
    },
    "tokenizer": {"name": "clip_bpe"},
    "preprocess": {
        "resize": "shortest",
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
    "logit_scale": {"init": 14.2857, "max": 100.0},
    "logit_bias": None,
    "source": "",
}


def write_checkpoint(workdir, spec=SPEC, *, plugins=()):
    """Writes a checkpoint of random parameters; returns its step folder."""
    tokenizer = make_tokenizer(
        spec["tokenizer"], context_length=spec["text"]["context_length"], plugins=plugins
    )
    contract, files = attach_tokenizer(make_contract(spec, tokenizer.contract(), plugins=plugins))
    rng = np.random.default_rng(0)
    leaves = []
    for name, leaf in flatten_with_names(abstract_variables(spec, plugins)["params"]):
        value = rng.normal(size=leaf.shape, scale=0.1).astype(np.float32)
        leaves.append(StreamedLeaf(f"params/{name}", leaf.shape, 1, lambda value=value: [value]))
    metadata = {
        "config": {"evals": {"pets": {"name": "zero_shot", "templates": "plain"}}},
        "contract": contract,
        "dataset_fingerprint": "",
        "global_batch_size": 8,
        "seed": 0,
    }
    step_dir = Path(workdir) / "checkpoints" / "1"
    write_step(step_dir, 1, leaves, metadata, files)
    return step_dir


def rewrite_manifest(step_dir, change):
    """Changes a manifest and signs it again, as anybody can."""
    path = Path(step_dir) / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["manifest_sha256"]
    fields = change(fields) or fields
    if isinstance(fields, dict):
        fields["manifest_sha256"] = manifests.digest(fields)
    path.write_text(json.dumps(fields))


class Done(NamedTuple):
    code: int
    out: str
    err: str


_SHARED = {"clipjax.cli.main", "clipjax.cli.logs"}


def _forget_verbs():
    """Takes the verbs' modules and flags away: each verb has a process of its own elsewhere."""
    modules = {n: m for n, m in sys.modules.items() if n.startswith("clipjax.cli.")}
    modules = {n: m for n, m in modules.items() if n not in _SHARED}
    kept = {}
    for name in list(flags.FLAGS):
        module = flags.FLAGS.find_module_defining_flag(name)
        if module in modules or name.startswith("config"):
            kept[name] = (module, flags.FLAGS[name])
            delattr(flags.FLAGS, name)
    for name in modules:
        del sys.modules[name]
        vars(clipjax.cli).pop(name.rpartition(".")[2], None)
    return modules, kept


@pytest.fixture
def command(monkeypatch):
    """Runs `clipjax VERB ...` in this process; returns exit code, output and errors."""
    from clipjax.cli import main

    modules, kept = _forget_verbs()
    root, absl = logging.getLogger(), logging.getLogger("absl")
    before = list(root.handlers), root.level, list(absl.handlers), absl.level
    path = list(sys.path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def run(*arguments):
        _forget_verbs()
        argv = ["clipjax", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        out, err = io.StringIO(), io.StringIO()
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            warnings.catch_warnings(),
            pytest.raises(SystemExit) as stop,
        ):
            warnings.filterwarnings("ignore", r"the load_module\(\) method")  # ml_collections'
            main.run(argv)
        sys.path[:] = path
        return Done(stop.value.code or 0, out.getvalue(), err.getvalue())

    yield run
    _forget_verbs()
    sys.modules.update(modules)
    for name, module in modules.items():
        setattr(clipjax.cli, name.rpartition(".")[2], module)
    for name, (module, flag) in kept.items():
        flags.FLAGS[name] = flag
        flags.FLAGS.register_flag_by_module(module, flag)
    root.handlers[:], root.level, absl.handlers[:], absl.level = before


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The workdir of a checkpoint that nobody has touched."""
    workdir = tmp_path_factory.mktemp("original")
    write_checkpoint(workdir)
    return workdir


@pytest.fixture
def workdir(original, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 16), (200, 30, 30)).save(path)
    return path


@pytest.fixture(scope="session")
def kit():
    """The helpers of this file, for tests that cannot import it by name."""

    class Kit:
        spec = SPEC
        write = staticmethod(write_checkpoint)
        rewrite = staticmethod(rewrite_manifest)

        @staticmethod
        def verbs(workdir, picture, tmp_path):
            """What opens a checkpoint, as a person types it."""
            return {
                "classify": ("classify", "--checkpoint", workdir, "--labels=cat,dog", picture),
                "eval": ("eval", "--checkpoint", workdir, "--zero_shot=synthetic:8?side=16"),
                "score": (
                    *("data", "score", "synthetic:8?side=16", "--checkpoint", workdir),
                    *("--out", tmp_path / "scores.parquet"),
                ),
                "convert": ("convert", "--from", workdir, "--to", tmp_path / "converted"),
                "finetune": (
                    *("train", "--workdir", tmp_path / "tuned", "--config"),
                    f"configs/finetune.py:checkpoint={workdir},source=synthetic:64,batch_size=8,"
                    "steps=1",
                    *("--config.report=false", "--config.tensorboard=false"),
                ),
            }

    return Kit
