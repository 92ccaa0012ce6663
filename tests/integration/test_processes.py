"""Two processes joined by launch/local.sh train as one process does."""

import os
import sys

import numpy as np


def test_two_processes_get_the_losses_of_one(clipjax, reference, losses_of, tmp_path):
    clipjax(
        "2",
        "--config",
        "configs/smoke.py",
        "--workdir",
        tmp_path,
        command=["bash", "launch/local.sh"],
        env={"CLIPJAX_COMMAND": f"{sys.executable} -m clipjax", "PATH": os.environ["PATH"]},
    )
    assert (tmp_path / "report.html").exists()
    one, two = losses_of(reference), losses_of(tmp_path)
    assert one.keys() == two.keys()
    np.testing.assert_allclose([two[s] for s in one], list(one.values()), rtol=2e-5)


def test_a_stopped_process_stops_both_at_one_step(clipjax, losses_of, tmp_path):
    """SIGTERM comes to one process; both save the same step and exit with the code for it."""
    script = (
        'if [ "$CLIPJAX_PROCESS_ID" = 1 ]; then export CLIPJAX_FAULT=term@loop.step:step=5; fi; '
        f'exec {sys.executable} -m clipjax "$@"'
    )
    starter = tmp_path / "start.sh"
    starter.write_text(script)
    workdir = tmp_path / "run"
    clipjax(
        "2",
        "--config",
        "configs/smoke.py:steps=400",
        "--workdir",
        workdir,
        "--config.checkpoint.every_steps=100",
        command=["bash", "launch/local.sh"],
        env={"CLIPJAX_COMMAND": f"bash {starter}"},
        check=80,
    )
    (saved,) = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()]
    assert 5 <= saved < 400
    assert max(losses_of(workdir)) == saved


def test_no_number_of_processes_is_a_usage_error(clipjax):
    done = clipjax("--config", "x", command=["bash", "launch/local.sh"], check=2)
    assert "usage" in done.stderr
