"""`clipjax debug`: a run whose parameters overflow, and the module that it names."""

import json

import pytest

FLAGS = (
    "--config=tests/faults/tiny_run.py:steps=8,batch_size=8",
    "--config.data.source=synthetic:64",
    "--config.optimizer.learning_rate=1e6",
    "--config.optimizer.weight_decay=1e6",  # each step multiplies what decays by -1e12
    "--config.schedule.name=constant",
    "--config.schedule.warmup_steps=0",
    "--config.max_skipped_in_a_row=2",
    "--config.checkpoint.every_steps=1",
)


@pytest.mark.slow
def test_the_first_module_that_is_not_finite_is_named(tmp_path, command):
    flags = (*FLAGS, f"--workdir={tmp_path}")
    code, _, errors = command("train", *flags)
    assert code == 81, errors
    first = json.loads((tmp_path / "skipped.jsonl").read_text().splitlines()[0])["step"]
    before = sorted(p.name for p in tmp_path.iterdir())
    code, said, errors = command("debug", *flags, f"--step={first}")
    assert code == 0, errors
    assert f"step {first}, from state {first - 1}: 0 steps replayed" in said
    assert "the forward pass: the output of image_encoder/" in said or "the gradient is" in said
    code, said, errors = command("debug", *flags, "--step=1")  # negative control
    assert code == 0 and "all is finite: loss" in said, said + errors
    code, _, errors = command("debug", *flags, "--step=9")
    assert code == 1 and "steps of the run are 1 to 8" in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == before


CONFIG = """
from tests.faults.tiny_run import get_config as tiny

def get_config(arg=None):
    config = tiny("steps=12,batch_size=8")
    config.schedule.name, config.schedule.warmup_steps = "rates:broken", 0
    config.plugins = ("rates",)
    return config
"""
RATES = """
import jax.numpy as jnp

def broken(*, learning_rate):
    return lambda step: jnp.where(step >= 5, jnp.nan, learning_rate)
"""


@pytest.mark.slow
def test_a_rate_that_is_nan_is_voted_on_and_named(tmp_path, command):
    """It leaves loss and gradient as they are, and would write NaN into every parameter."""
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "rates.py").write_text(RATES)
    flags = (f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    code, _, errors = command("train", *flags)
    assert code == 81 and "--resume_step=4 goes back" in errors, errors
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept[:2] == ["10", "2"] and "4" in kept, kept
    code, said, errors = command("debug", *flags, "--step=6")
    assert code == 0 and "gradient are finite; the learning rate of config.schedule is nan" in said
