"""`config.checkpoint.best` by the command: what it refuses, and what a run keeps."""

import json

import pytest

from clipjax.checkpoint import read_manifest


def test_the_command_refuses_a_metric_that_is_none(train_here, tmp_path):
    flags = ("--config.evals.zero_shot.every_steps=4",)
    told = train_here(tmp_path, *flags, "--config.checkpoint.best=zero_shot/synthetic_128/top9")
    assert "top9" in told and "zero_shot/synthetic_128/top1" in told
    assert not (tmp_path / "checkpoints").exists()
    told = train_here(tmp_path, "--config.checkpoint.best=-zero_shot/synthetic_128/top1")
    assert "at the end only" in told


@pytest.mark.slow
def test_a_run_keeps_its_best_step(clipjax, tmp_path):
    best = "zero_shot/synthetic_128/top1"
    flags = (
        f"--config.checkpoint.best={best}",
        "--config.evals.zero_shot.every_steps=3",
        "--config.checkpoint.keep=1",
    )
    clipjax.train(tmp_path, *flags, env={"CLIPJAX_FAULT": "kill@loop.step:step=16"}, check=-9)
    clipjax.train(tmp_path, *flags)
    rows = [json.loads(line) for line in (tmp_path / "evals.jsonl").read_text().splitlines()]
    values = {row["step"]: row[best] for row in rows}
    wanted = min(step for step in values if values[step] == max(values.values()))
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert {wanted, 24} <= kept
    assert read_manifest(tmp_path / "checkpoints" / str(wanted)).metrics[best] == values[wanted]
