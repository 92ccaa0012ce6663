"""A small checkpoint that tests may bend."""

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from PIL import Image
from tiny import tiny_spec

from clipjax.checkpoint import manifest as manifests

SPEC = tiny_spec(
    image={"patch_size": 8, "depth": 1},
    text={"vocab_size": 49408, "context_length": 16, "depth": 1},
)
EVALS = {"pets": {"name": "zero_shot", "templates": "plain"}}


def write(workdir, spec=SPEC, **options):
    return write_checkpoint(workdir, spec, config={"evals": EVALS}, **options)


def rewrite_manifest(step_dir, change):
    """Changes a manifest and signs it again, as anybody can."""
    path = Path(step_dir) / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["manifest_sha256"]
    fields = change(fields) or fields
    if isinstance(fields, dict):
        fields["manifest_sha256"] = manifests.digest(fields)
    path.write_text(json.dumps(fields))


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
            f"configs/finetune.py:checkpoint={workdir},source=synthetic:64,batch_size=8,steps=1",
            *("--config.report=false", "--config.tensorboard=false"),
        ),
    }


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The workdir of a checkpoint that nobody has touched."""
    workdir = tmp_path_factory.mktemp("original")
    write(workdir)
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
        write = staticmethod(write)
        rewrite = staticmethod(rewrite_manifest)

        verbs = staticmethod(verbs)

    return Kit
