"""What is replaced of the data is counted in the metrics and the checkpoints, over restarts and
over processes."""

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

NUM_PICTURES, BROKEN = 40, 4


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(NUM_PICTURES):
        (folder / f"{i}.txt").write_text(f"picture {i}")
        pixels = np.full((16, 16, 3), 6 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for i in range(BROKEN):
        (folder / f"{i}.png").write_bytes(b"this is no picture")
    return (
        f"--config.data.source=folder:{folder}",
        "--config.data.max_bad_fraction=1.0",
        "--config.batch_size=8",
        "--config.checkpoint.every_steps=4",
        "--config.log_every=1",
        "--config.schedule.warmup_steps=2",
        "--config.total_steps=8",
        "--config.report=false",
    )


def counted(workdir, step):
    """By reason: in the metrics up to a step, and in its checkpoint."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    row = next(row for row in lines if row["step"] == step)
    metrics = {name.removeprefix("bad/"): n for name, n in row.items() if name.startswith("bad/")}
    manifest = json.loads((workdir / "checkpoints" / str(step) / "manifest.json").read_text())
    return metrics, manifest["bad_examples"]


@pytest.fixture(scope="module")
def whole(clipjax, flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    clipjax.train(workdir, *flags)
    return workdir


@pytest.mark.slow  # tests/data/loading/test_loader.py adds up what two of them counted
def test_counts_go_on_over_a_restart(clipjax, flags, whole, tmp_path):
    # Killed behind the save of step 4, and started again.
    clipjax.train(tmp_path, *flags, env={"CLIPJAX_FAULT": "kill@loop.step:step=6"}, check=-9)
    clipjax.train(tmp_path, *flags)
    metrics, state = counted(whole, 8)
    # 64 places of the stream are an epoch and a half.
    assert metrics == state["by_reason"] and metrics["image_format"] >= BROKEN
    assert state["window"] == {"seen": 64, "bad": sum(metrics.values())}
    assert counted(tmp_path, 8) == (metrics, state)
    # Negative control: half of the run has other counts.
    assert counted(whole, 4)[1] != state


@pytest.mark.slow
def test_two_processes_count_what_one_does(clipjax, flags, whole, tmp_path):
    clipjax(
        *("2", "--config", "configs/smoke.py", "--workdir", tmp_path, *flags),
        command=["bash", "launch/local.sh"],
        env={"CLIPJAX_COMMAND": f"{sys.executable} -m clipjax", "PATH": os.environ["PATH"]},
    )
    assert counted(tmp_path, 8) == counted(whole, 8)
