"""Signals become an answer to the loop, or the end of the process where nothing is lost by it."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from counting import HANGS_S, wait_until

from clipjax import faults
from clipjax.processes import exit_codes, signals
from clipjax.processes.signals import INTERRUPTED, PreemptionGuard, StopRequestedError

ROOT = Path(__file__).parents[2]


def test_exit_codes_differ():
    codes = [value for value in vars(exit_codes).values() if type(value) is int]
    assert len(set(codes)) == len(codes) and {0, 1, 80, 81, 82, 83} <= set(codes)


@pytest.mark.parametrize("number", signals.STOPS)
def test_a_signal_is_an_answer_between_two_steps(number):
    before = signal.getsignal(number)
    with PreemptionGuard() as guard:
        assert not guard.should_stop()
        signals.poll()
        signals.poll_alone()
        signal.raise_signal(number)
        wait_until(guard.should_stop)
        assert guard.should_stop()
        for poll in (signals.poll, signals.poll_alone):
            with pytest.raises(StopRequestedError):
                poll()
    assert signal.getsignal(number) == before
    signals.poll()  # nobody listens


def test_a_term_fault_is_such_a_signal(monkeypatch):
    monkeypatch.setenv(faults.FAULT, "term@loop:step=2")
    with PreemptionGuard() as guard:
        for step in range(5):
            faults.point("loop", step)
            if step >= 2:
                wait_until(guard.should_stop)
            assert guard.should_stop() == (step >= 2)


def test_waiting_threads_are_not_stopped():
    """Only the main thread can: a worker's error would be taken for one of its data."""
    met = []
    with PreemptionGuard() as guard:
        signal.raise_signal(signal.SIGTERM)
        wait_until(guard.should_stop)
        thread = threading.Thread(target=lambda: met.append(signals.poll_alone()))
        thread.start()
        thread.join()
    assert met == [None]


def ended(code, **changes):
    """Runs Python in a process of its own; returns its exit code and what it said."""
    return ends(
        "-c", f"import os, signal, time\nfrom clipjax.processes import signals\n{code}", **changes
    )


def ends(*arguments, **changes):
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **changes},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    return done.returncode, done.stderr


SEND = "for number in ({}):\n  os.kill(os.getpid(), number)\n  time.sleep({})\n"
# One long call without the interpreter: the main thread runs no handler meanwhile.
DEAF = "import ctypes\nwhile True: ctypes.CDLL(None).sleep(60)\n"


@pytest.mark.parametrize(
    ("sent", "apart_s", "code"),
    [
        ("signal.SIGTERM, signal.SIGTERM", 0.1, 143),
        ("signal.SIGINT, signal.SIGINT", 0.7, 130),
        ("signal.SIGHUP, signal.SIGHUP", 0.7, 129),
        ("signal.SIGUSR1, signal.SIGTERM", 0.7, 143),
        # The terminal that closes, its shell, and a service manager: one request.
        ("signal.SIGHUP, signal.SIGHUP, signal.SIGTERM", 0.01, 7),
        ("signal.SIGUSR1, signal.SIGUSR1", 0.7, 7),  # a scheduler may warn more than once
    ],
)
def test_a_second_signal_ends_at_once(sent, apart_s, code):
    begin = "signals.PreemptionGuard().__enter__()\n"
    found, said = ended(begin + SEND.format(sent, apart_s) + "os._exit(7)\n")
    assert found == code, said
    assert ("ended without saving" in said) == (code != 7)
    assert "second signal ends it at once" in said and "Traceback" not in said


def test_where_nothing_is_lost_the_process_ends_though_its_main_thread_is_deaf():
    begin = "signals.PreemptionGuard(is_command=True).__enter__()\n"
    strike = "import threading\n"
    strike += "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
    code, said = ended(begin + strike + DEAF)
    assert code == exit_codes.PREEMPTED and "start again" in said
    # Once the loop would lose steps, it is asked instead; ending comes when it has saved.
    losing = f"guard = {begin}guard.losing(True)\n"
    wait = "while not guard.should_stop(): time.sleep(0.01)\nos.write(1, b'saved')\n"
    code, said = ended(losing + strike + wait + "guard.losing(False)\nos._exit(5)\n")
    assert code == exit_codes.PREEMPTED, said


def test_an_inherited_ignore_stays_ignored():
    run = (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with signals.PreemptionGuard() as guard:\n"
        " os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.3)\n"
        " os._exit(10 + guard.should_stop())\n"
    )
    assert ended(run)[0] == 10
    assert ended(run.replace("SIG_IGN", "SIG_DFL"))[0] == 11  # negative control


def test_ctrl_c_is_one_sentence_and_an_end():
    begin = "with signals.interruptible('stopped by hand'):\n os.kill(os.getpid(), signal.SIGINT)\n"
    assert ended(f"{begin} time.sleep(60)\n") == (INTERRUPTED, "stopped by hand\n")
    # One that is lost, as in a callback, or that nobody heeds: the second one ends it.
    lost = "with signals.interruptible('stopped by hand'):\n for _ in (1, 2):\n  try:\n"
    lost += (
        "   os.kill(os.getpid(), signal.SIGINT); time.sleep(0.5)\n  except BaseException: pass\n"
    )
    assert ended(lost) == (INTERRUPTED, "stopped by hand\n")


@pytest.mark.parametrize("point", ["start.import", "index.shard"])
def test_a_command_ends_by_ctrl_c_with_one_sentence(tmp_path, point):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.jpg", "a.txt"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    command = ("-m", "clipjax", "data", "index", f"tar:{tmp_path}/*.tar")
    code, said = ends(*command, **{faults.FAULT: f"int@{point}"})
    *others, sentence = said.splitlines()
    assert code == INTERRUPTED and all("injected fault" in line for line in others), said
    assert sentence == "clipjax data: interrupted; start it again to have it all"
    assert ends(*command)[0] == 0  # negative control, and the way to go on
