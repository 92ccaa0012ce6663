"""A process that makes no progress ends with its stacks and a code of its own."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from counting import HANGS_S, wait_until

from clipjax import faults
from clipjax.processes import exit_codes
from clipjax.processes import watchdog as watchdogs
from clipjax.processes.watchdog import Watchdog

ROOT = Path(__file__).parents[2]


def test_a_process_that_hangs_is_ended_with_its_stacks():
    code = (
        "from clipjax import faults\nfrom clipjax.processes.watchdog import Watchdog\n"
        "def stuck_step():\n"
        "    faults.point('step', 4)\n"
        "with Watchdog(0.5) as watchdog:\n"
        "    stuck_step()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), faults.FAULT: "hang@step"},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert result.returncode == exit_codes.HUNG
    assert "no progress for 0.5 s in a step" in result.stderr and "in stuck_step" in result.stderr


def test_parts_that_do_not_close_are_ended_and_the_error_before_is_said():
    code = (
        "import contextlib\nfrom clipjax import faults\n"
        "from clipjax.processes.watchdog import Closing\n"
        "with contextlib.ExitStack() as stack:\n"
        "    closing = Closing(0.5)\n"
        "    stack.push(closing.end)\n"
        "    stack.callback(faults.point, 'step')\n"
        "    stack.push(closing.begin)\n"
        "    raise OSError(5, 'the true one')\n"
    )
    for hangs in (True, False):  # the other one is the negative control
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT), faults.FAULT: "hang@step" * hangs},
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )
        assert result.returncode == (exit_codes.HUNG if hangs else 1)
        words = "no progress for 0.5 s in closing the run, which ended with: [Errno 5] the true one"
        assert (words in result.stderr) == hangs


def test_a_process_that_makes_progress_is_left_alone(monkeypatch):
    class Clock:
        now, looks = 1000.0, 0

        def monotonic(self):
            self.looks += 1
            return self.now

    clock, given_up = Clock(), []
    monkeypatch.setattr(watchdogs, "time", clock)
    monkeypatch.setattr(Watchdog, "give_up", lambda self, reason: given_up.append(1))
    with Watchdog(0.4) as watchdog:
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
        Watchdog(timeout_s)


def test_none_is_no_watchdog():
    before = set(threading.enumerate())
    with Watchdog(None) as watchdog:
        assert set(threading.enumerate()) == before
        watchdog.beat()
    with Watchdog(60):  # negative control: a time starts its thread
        assert set(threading.enumerate()) > before


def test_a_phase_has_a_time_of_its_own(monkeypatch):
    given_up = []
    monkeypatch.setattr(Watchdog, "give_up", lambda self, reason: given_up.append(reason))
    with Watchdog(None) as watchdog:
        with watchdog.phase("compiling", 0.05):
            wait_until(lambda: given_up)
        assert set(given_up) == {"no progress for 0.05 s in compiling"}
    del given_up[:]
    with Watchdog(0.2) as watchdog, watchdog.phase("compiling", None):
        time.sleep(0.6)
        assert given_up == []
    with pytest.raises(ValueError, match="positive"), watchdog.phase("compiling", -1):
        pass
