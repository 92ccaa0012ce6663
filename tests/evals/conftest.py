import json
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from PIL import Image
from tiny import tiny_spec

# The evaluations are shared by the modules of this folder, which is no package.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The workdir of a model that nobody trained, and that tells texts and pictures apart."""
    workdir = tmp_path_factory.mktemp("tiny")
    size = {"patch_size": 8, "depth": 1}, {"vocab_size": 49408, "context_length": 16, "depth": 1}
    write_checkpoint(workdir, tiny_spec(image=size[0], text=size[1]))
    return workdir


@pytest.fixture
def save_picture():
    """Writes a picture of noise, drawn from a number."""

    def save(path, number, side=24):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST).save(path)

    return save


@pytest.fixture
def evaluate(command, cache, tiny_checkpoint, tmp_path):
    """`clipjax eval --eval KIND=SPEC ...` on the tiny checkpoint: its numbers and its entry."""

    def run(kind, spec, *flags):
        found = tmp_path / "found.json"
        done = command(
            *("eval", f"--checkpoint={tiny_checkpoint}", f"--eval={kind}={spec}"),
            *(f"--json={found}", *flags),
        )
        if done.code:
            return done
        ((prefix, entry),) = json.loads(found.read_text())["evaluations"].items()
        assert prefix.startswith(f"{kind}/")
        return entry["metrics"], entry

    return run


@pytest.fixture
def sets(monkeypatch):
    """What `labelled.make_sets` gives; SPECs of a probe are the names of its sets."""
    import labelled

    from clipjax.evals import probe

    found, params = labelled.make_sets()
    monkeypatch.setattr(probe, "make_source", lambda spec, path: found[spec])
    return found, params
