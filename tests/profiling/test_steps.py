"""`--profile_steps`: which steps are traced, the table, and that the profiler ends no run."""

import json
import logging

import jax
import jax.numpy as jnp
import pytest

from clipjax.profiling import StepProfile, parse_steps
from clipjax.profiling.steps import kernel_table


def test_steps_are_read():
    assert parse_steps("10:15") == (10, 15) and parse_steps("3:3") == (3, 3)
    for wrong in ("10", "15:10", "0:3", "1:101", "a:b", "1:2:3"):
        with pytest.raises(ValueError, match="--profile_steps="):
            parse_steps(wrong)


def test_a_wrong_flag_is_said_before_anything_begins(train_here_flags):
    done = train_here_flags("--profile_steps=5")
    assert done.code == 1 and "expected FIRST:LAST" in done.err and "Traceback" not in done.err


@pytest.fixture
def train_here_flags(command, tmp_path):
    def train(*flags):
        return command("train", "--config=configs/smoke.py", f"--workdir={tmp_path}", *flags)

    return train


def run(profile, steps, state):
    step = jax.jit(lambda x: jnp.tanh(x @ x))
    step(state).block_until_ready()  # compiled before
    for number in steps:
        profile.before(number, state)
        state = step(state)
        profile.after(number, state)
    profile.close()


def test_the_steps_are_traced_and_their_kernels_summed(tmp_path, caplog):
    logging.getLogger("absl").setLevel(logging.INFO)
    run(StepProfile(tmp_path, (3, 5), 0), range(1, 8), jnp.eye(256) / 256)
    folder = tmp_path / "profile" / "steps_3_5"
    found = json.loads((folder / "kernels.json").read_text())
    assert list(folder.rglob("*.xplane.pb")) and found["busy_ms"] > 0
    # Each of the three steps ran each kernel as often: nothing of the steps around is counted.
    assert {row["runs"] % 1 for row in found["kernels"]} == {0.0}
    assert "over 3 steps" in (folder / "kernels.txt").read_text() and "over 3 steps" in caplog.text


def test_steps_that_are_done_are_not_traced(tmp_path, caplog):
    run(StepProfile(tmp_path, (3, 5), 4), range(5, 8), jnp.eye(8))
    assert "nothing is traced" in caplog.text and not (tmp_path / "profile").exists()


def test_steps_that_do_not_come_are_said(tmp_path, caplog):
    run(StepProfile(tmp_path, (30, 40), 0), range(1, 4), jnp.eye(8))
    assert "nothing was traced, the run ended before step 30" in caplog.text


def test_a_run_that_ends_inside_leaves_its_trace(tmp_path, caplog):
    run(StepProfile(tmp_path, (3, 50), 0), range(1, 5), jnp.eye(8))
    assert "there is a trace, no table" in caplog.text
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_profiler_that_fails_ends_no_run(tmp_path, caplog, monkeypatch):
    def start(*_, **__):
        raise RuntimeError("CUPTI is taken")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    run(StepProfile(tmp_path, (1, 2), 0), range(1, 5), jnp.eye(8))
    assert "not profiled, and the run goes on: RuntimeError: CUPTI is taken" in caplog.text


def test_the_table_adds_up():
    rows = [{"kernel": f"gemm_{n}", "part": "", "ms": 4.0 - n, "runs": 1.0} for n in range(3)]
    found = {"busy_ms": 10.0, "kernels": rows, "by_kind": {"matrix product": 9.0, "other": 1.0}}
    lines = kernel_table(found, steps=2, most=2).splitlines()
    assert lines[0] == "10.00 ms of kernels a step, over 2 steps: matrix product 90%, other 10%"
    assert lines[2].split() == ["4.000", "40.0%", "1.0", "gemm_0"]
    assert lines[-1].split() == ["3.000", "30.0%", "all", "others"]
