"""Faults strike where they are told to, signals become a flag, a hang becomes an exit code."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from counting import HANGS_S, wait_until

from clipjax import faults

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_fired(monkeypatch):
    monkeypatch.setattr(faults, "_fired", set())


def test_without_a_fault_a_point_does_nothing(monkeypatch):
    monkeypatch.delenv(faults.FAULT, raising=False)
    faults.point("save.before_manifest", 3)


def test_a_fault_strikes_at_its_point_and_step_once(monkeypatch):
    monkeypatch.setenv(faults.FAULT, "raise@save.before_manifest:step=3")
    faults.point("save.before_manifest", 2)
    faults.point("save.before_manifest")
    faults.point("save.mid_write", 3)
    with pytest.raises(faults.InjectedFault, match=r"save\.before_manifest"):
        faults.point("save.before_manifest", 3)
    faults.point("save.before_manifest", 3)


def test_a_fault_without_a_step_strikes_at_the_first(monkeypatch):
    monkeypatch.setenv(faults.FAULT, "raise@here")
    with pytest.raises(faults.InjectedFault):
        faults.point("here", 17)


@pytest.mark.parametrize(
    "text",
    ["kill", "kill@", "@here", "boom@here", "kill@here:step", "kill@here:step=x", "kill@a:b=1"],
)
def test_a_fault_of_another_form_is_an_error(monkeypatch, text):
    monkeypatch.setenv(faults.FAULT, text)
    with pytest.raises(ValueError, match=r"expected action@point\[:step=N\]"):
        faults.point("elsewhere")


def test_exit_codes_differ():
    codes = {faults.OK, faults.FAILED, faults.PREEMPTED, faults.NUMERIC, faults.HUNG}
    assert codes == {0, 1, 80, 81, 82}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_flag_between_two_steps(number):
    before = signal.getsignal(number)
    with faults.PreemptionGuard() as guard:
        assert not guard.should_stop(1)
        signal.raise_signal(number)
        assert guard.should_stop(2)
        assert guard.should_stop(3)
    assert signal.getsignal(number) == before


def test_a_term_fault_is_such_a_signal(monkeypatch):
    monkeypatch.setenv(faults.FAULT, "term@loop:step=2")
    with faults.PreemptionGuard() as guard:
        for step in range(5):
            faults.point("loop", step)
            assert guard.should_stop(step) == (step >= 2)


def test_a_second_sigterm_ends_at_once(monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    with faults.PreemptionGuard():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert exits == []  # a scheduler may send its warning more than once
        signal.raise_signal(signal.SIGTERM)
        assert exits == [143]


def test_a_process_that_hangs_is_ended_with_its_stacks():
    code = (
        "from clipjax import faults\n"
        "def stuck_step():\n"
        "    faults.point('step', 4)\n"
        "with faults.Watchdog(0.5) as watchdog:\n"
        "    stuck_step()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), faults.FAULT: "hang@step"},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert result.returncode == faults.HUNG
    assert "no progress for 0.5 s" in result.stderr and "in stuck_step" in result.stderr


def test_a_process_that_makes_progress_is_left_alone(monkeypatch):
    class Clock:
        now, looks = 1000.0, 0

        def monotonic(self):
            self.looks += 1
            return self.now

    clock, given_up = Clock(), []
    monkeypatch.setattr(faults, "time", clock)
    monkeypatch.setattr(faults.Watchdog, "_give_up", lambda self: given_up.append(1))
    with faults.Watchdog(0.4) as watchdog:
        for _ in range(8):
            clock.now += 0.3
            looks = clock.looks
            wait_until(lambda: clock.looks > looks)  # noqa: B023  called at once
            watchdog.beat()
        assert given_up == []
        clock.now += 0.8
        wait_until(lambda: given_up)  # negative control: the same dog bites


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_watchdog_needs_a_time(timeout_s):
    with pytest.raises(ValueError, match="positive"):
        faults.Watchdog(timeout_s)


def test_none_is_no_watchdog():
    before = set(threading.enumerate())
    with faults.Watchdog(None) as watchdog:
        assert set(threading.enumerate()) == before
        watchdog.beat()
    with faults.Watchdog(60):  # negative control: a time starts its thread
        assert set(threading.enumerate()) > before
