"""Processes of a run end together: one that fails, one that is lost, one that never came."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clipjax.processes import peers
from clipjax.processes.distributed import Limits
from clipjax.processes.exit_codes import FAILED, PEER_LOST

ROOT = Path(__file__).parents[2]
# A process that joins, does what the test says, and then waits as in a collective.
CODE = """
import os, sys, time
from pathlib import Path
from clipjax.processes import distributed, peers, process_log
limits = distributed.Limits(join_timeout_s=int(sys.argv[2]), heartbeat_timeout_s=3)
process_log.start(Path(sys.argv[1]))
peers.guard(limits)
distributed.initialize("on", limits)
peers.watch(limits)
me = distributed.process_index()
"""
WAIT = "\ntime.sleep(300)\n"


@pytest.fixture
def started(tmp_path):
    """Starts some processes of a run; gives (process, exit code, lines of its terminal) of each."""
    left = []

    def start(code, processes=(0, 1), count=2, join_s=120):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        running = []
        for number in processes:
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "CLIPJAX_COORDINATOR": f"127.0.0.1:{port}",
                "CLIPJAX_NUM_PROCESSES": str(count),
                "CLIPJAX_PROCESS_ID": str(number),
            }
            command = [sys.executable, "-c", CODE + code + WAIT, str(tmp_path), str(join_s)]
            running.append(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
        left.extend(running)
        ended = []
        for process in running:
            _, shown = process.communicate(timeout=240)
            ended.append((process.returncode, shown.splitlines()))
        return ended

    yield start
    for process in left:
        process.kill()


# The lead: row M4 of tests/faults, too.
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_that_fails_tells_the_others_why(started, tmp_path, number):
    code = (
        f"if me == {number}:\n"
        "    error = ValueError('no such file token=hf_canary')\n"
        "    peers.fail(error, 1, lambda: process_log.say('its own last word'))\n"
    )
    ended = started(code)
    assert ended[number] == (FAILED, ["its own last word"])
    log = tmp_path / "logs" / f"process_{1 - number}.log"
    told = f"clipjax: process {number} failed: no such file token=[redacted]; all of it is in {log}"
    assert ended[1 - number] == (PEER_LOST, [told])
    assert "ValueError" in (tmp_path / "logs" / f"process_{number}.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2])
def test_one_of_three_that_is_killed_is_named(started, tmp_path, number):
    """JAX's dump of it is in the log alone."""
    code = f"time.sleep(1)\nif me == {number}: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    ended = started(code, (0, 1, 2), 3)
    assert ended[number] == (-signal.SIGKILL, [])
    for other in {0, 1, 2} - {number}:
        exit_code, lines = ended[other]
        assert exit_code == PEER_LOST and len(lines) == 1
        assert f"process {number} was lost" in lines[0]
        assert "Check failure" in (tmp_path / "logs" / f"process_{other}.log").read_text()


def test_a_run_that_does_not_get_together_says_who_came(started):
    ((exit_code, lines),) = started("", (0,), 2, join_s=2)
    assert exit_code == PEER_LOST and len(lines) == 1
    assert (
        "of its 2 processes 0 came within config.distributed.join_timeout_s = 2, 1 not" in lines[0]
    )


@pytest.mark.slow
def test_without_the_lead_a_run_does_not_get_together(started):
    ((exit_code, lines),) = started("", (1,), 2, join_s=2)
    assert exit_code == PEER_LOST and len(lines) == 1
    assert "process 0 was lost: it leads the run, and did not answer" in lines[0]


@pytest.mark.slow
def test_a_library_that_aborts_is_no_lost_peer(started):
    """The one dies of SIGABRT as it would have, and the other says why."""
    code = "if me == 1:\n    os.write(2, b'F0101 CHECK failed: x\\n')\n    os.abort()\n"
    (exit_code, lines), (aborted, own) = started(code)
    assert aborted == -signal.SIGABRT and "F0101 CHECK failed: x" in own[-1]
    assert exit_code == PEER_LOST and "process 1 failed: F0101 CHECK failed: x" in lines[-1]


@pytest.mark.nightly
@pytest.mark.parametrize("connected", [True, False])
def test_a_process_may_be_late_once_all_are_connected(started, connected):
    """Where they are not, gloo gives up after 30 s: if it no longer does, `connect` may go."""
    code = (
        "import jax\nfrom clipjax.partitioning import make_mesh, replicated\n"
        "mesh = make_mesh({'data': -1})\n"
        f"if {connected}: distributed.connect(mesh)\n"
        "spread = jax.NamedSharding(mesh, jax.P('data'))\n"
        "ones = jax.make_array_from_process_local_data(spread, jax.numpy.ones(8))\n"
        "total = jax.jit(jax.numpy.sum, out_shardings=replicated(mesh)).lower(ones).compile()\n"
        "if me == 1: time.sleep(40)\n"
        "try: print('total', total(ones), file=sys.stderr)\n"
        "except Exception as error: print('failed', str(error)[:99], file=sys.stderr)\n"
        "sys.stderr.flush()\nos._exit(0)\n"
    )
    _, shown = started(code)[0]
    words = "total 16.0" if connected else "failed UNKNOWN: Gloo context"
    assert any(words in line for line in shown), shown


def test_what_is_no_dump_of_a_lost_peer():
    assert peers.read_dump("F0101 CHECK failed: 2 tasks\n1\n", Limits()) is None
    several = (
        "JAX distributed service detected fatal errors. absl::Status: UNAVAILABLE: The following "
        "tasks are unhealthy (stopped sending heartbeats):\n3\n17\nThe tasks have crashed.\n"
        "*** Check failure stack trace: ***"
    )
    assert "processes 3, 17 were lost" in peers.read_dump(several, Limits()).sentence()


def test_a_process_on_its_own_ends_as_ever():
    peers.watch(Limits())
    error = ValueError("x")
    with pytest.raises(ValueError, match="x"), peers.telling():
        raise error
    assert peers.theirs(error) is None
    peers.fail(error, FAILED, lambda: pytest.fail("it says nothing"))
    peers.leave()
