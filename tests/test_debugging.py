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
