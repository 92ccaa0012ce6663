"""The caption loss of docs/extending.md, by the commands: two processes, a kill, other readers."""

import json
import os
import sys

import numpy as np
import pytest
from extending_page import CAPTIONER

pytestmark = pytest.mark.slow  # seven commands; in one process: tests/experiment/test_objectives.py
STEPS = 6
CONFIG = """
from configs.smoke import get_config as smoke


def get_config(arg=None):
    config = smoke("steps=6,batch_size=16")
    config.model.image.depth = config.model.text.depth = 1
    config.objective = {"name": "my_lab.objectives:Captioner", "weight": 2.0}
    config.checkpoint.every_steps, config.log_every = 2, 1
    config.report = config.tensorboard = False
    return config
"""


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory):
    """A user's folder: the module of docs/extending.md, and a config that names it."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "my_lab").mkdir()
    (folder / "my_lab" / "objectives.py").write_text(CAPTIONER, encoding="utf-8")
    (folder / "config.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def two(clipjax, plugin_folder):
    """Trains in two processes."""
    environment = {"CLIPJAX_COMMAND": f"{sys.executable} -m clipjax", "PATH": os.environ["PATH"]}

    def train(workdir, **more):
        env = {**environment, **more.pop("env", {})}
        flags = ("--config", plugin_folder / "config.py", "--workdir", workdir)
        return clipjax("2", *flags, command=["bash", "launch/local.sh"], env=env, **more)

    return train


@pytest.fixture(scope="module")
def whole(two, tmp_path_factory):
    """A run of two processes that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    two(workdir)
    return workdir


def test_two_processes_get_the_losses_of_one(clipjax, plugin_folder, whole, losses_of, tmp_path):
    clipjax("train", "--config", plugin_folder / "config.py", "--workdir", tmp_path)
    one, both = losses_of(tmp_path), losses_of(whole)
    np.testing.assert_allclose([both[s] for s in one], list(one.values()), rtol=2e-5)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    # The loss of pairs of this model begins at ln 16; twice the captions' is on top of it.
    assert all(row["loss"] - 2 * row["caption_loss"] < 6 < row["caption_loss"] for row in rows)


def test_a_killed_run_goes_on_to_the_bit(two, whole, losses_of, digests_of, tmp_path):
    two(tmp_path, env={"CLIPJAX_FAULT": f"kill@loop.step:step={STEPS - 1}"}, check=None)
    assert not (tmp_path / "checkpoints" / str(STEPS)).exists()
    two(tmp_path)
    assert losses_of(tmp_path) == losses_of(whole)
    found = digests_of(tmp_path, STEPS)
    assert found == digests_of(whole, STEPS)
    assert any(name.startswith("params/objective/words") for name in found)


def test_its_checkpoint_is_a_model_to_everybody_else(clipjax, whole, tmp_path):
    """None of these commands stands where my_lab can be imported, nor names it."""
    flags = ("--zero_shot=synthetic:64", "--templates=plain")
    found = []
    clipjax("convert", "--from", whole, "--to", tmp_path / "towers")
    for path in (whole, tmp_path / "towers"):
        clipjax("eval", "--checkpoint", path, *flags, f"--json={tmp_path / 'out.json'}")
        found.append(json.loads((tmp_path / "out.json").read_text()))
    scores = [{k: v for k, v in each.items() if isinstance(v, float)} for each in found]
    assert scores[0] == scores[1] and scores[0]
    leaves = (tmp_path / "towers" / "checkpoints" / "0" / "manifest.json").read_text()
    assert "objective" not in leaves
