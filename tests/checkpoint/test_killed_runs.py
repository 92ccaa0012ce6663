"""Real processes that are killed while they save; rows K1 and K2 of tests/faults kill `train`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from counting import HANGS_S
from xla_flags import with_devices

from clipjax.processes import exit_codes

ROOT = Path(__file__).parents[2]


def environment(**changes):
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": path, **changes}


def command(workdir, *arguments):
    return [
        sys.executable,
        str(Path(__file__).with_name("killed_run.py")),
        str(workdir),
        *arguments,
    ]


def outcome(workdir, state):
    """The loss of each step, by line, and the bytes of the last state."""
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]
    return (Path(workdir) / "metrics.jsonl").read_text().splitlines(), leaves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, killed_run):
    workdir = tmp_path_factory.mktemp("undisturbed")
    code, state = killed_run.train(workdir)
    assert code == exit_codes.OK
    return outcome(workdir, state)


def run_two(workdir, *, arguments=((), ()), changes=({}, {})):
    """Runs two processes of two devices each; returns their exit codes and output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            command(workdir, *arguments[rank]),
            env=environment(RANK=str(rank), PORT=port, XLA_FLAGS=with_devices(2), **changes[rank]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        output = [p.communicate(timeout=HANGS_S)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [p.returncode for p in processes], output


def assert_close(workdir, state, undisturbed):
    """Another topology adds floats in another order, so losses are close and not equal."""
    lines = (outcome(workdir, state)[0], undisturbed[0])
    for mine, other in zip(*(map(json.loads, x) for x in lines), strict=True):
        assert mine["step"] == other["step"]
        np.testing.assert_allclose(mine["loss"], other["loss"], rtol=1e-5)


def test_killed_inside_a_save_a_run_ends_as_if_left_alone(tmp_path, killed_run, undisturbed):
    """To the bit; what was half written is gone."""
    done = subprocess.run(
        command(tmp_path),
        env=environment(CLIPJAX_FAULT="kill@save.mid_write:step=16"),
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == -9, done.stderr
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) < killed_run.TOTAL_STEPS
    complete = [int(path.parent.name) for path in tmp_path.glob("checkpoints/*/manifest.json")]
    assert max(complete) == 14
    code, state = killed_run.train(tmp_path)
    assert code == exit_codes.OK
    assert outcome(tmp_path, state) == undisturbed
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["22", "24"]


@pytest.mark.slow  # tests/integration/test_processes.py stops two of them, too
def test_two_processes_stop_at_one_step_and_one_process_goes_on(tmp_path, killed_run, undisturbed):
    """SIGUSR1 comes to one of them; both save the same step; eight devices continue from four."""
    codes, output = run_two(tmp_path, arguments=((), ("SIGUSR1@5",)))
    assert codes == [exit_codes.PREEMPTED] * 2, output
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert steps[-1] == len(lines) < killed_run.TOTAL_STEPS
    code, state = killed_run.train(tmp_path)
    assert code == exit_codes.OK
    assert_close(tmp_path, state, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("point", ["save.mid_write", "save.before_manifest", "save.before_copy"])
def test_one_of_two_processes_dies_inside_a_save(tmp_path, killed_run, undisturbed, rank, point):
    """The other one ends too, with an error, and nothing half-written counts."""
    changes = [{}, {}]
    changes[rank] = {"CLIPJAX_FAULT": f"kill@{point}:step=6"}
    codes, output = run_two(tmp_path, changes=changes)
    assert codes[rank] == -9 and codes[1 - rank] not in (0, -9), output
    code, state = killed_run.train(tmp_path)
    assert code == exit_codes.OK
    assert_close(tmp_path, state, undisturbed)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["22", "24"]
