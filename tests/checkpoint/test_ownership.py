"""One writer a workdir: who holds it, who takes it over, and what the loser is told."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clipjax import faults
from clipjax.checkpoint import ownership
from clipjax.checkpoint.ownership import OWNER, Ownership, WorkdirTakenError, owned

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("BEAT_S", 0.02), ("DEAD_S", 0.5), ("_LOOK_S", 0.01)):
        monkeypatch.setattr(ownership, name, seconds)


def leave(workdir, **changes):
    """The owner file of a process that was killed."""
    with Ownership(workdir) as owner:
        record = dataclasses.asdict(owner.me) | changes
    (workdir / OWNER).write_text(json.dumps(record))


def gone_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def files(workdir):
    return sorted(path.name for path in workdir.iterdir())


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path):
    with owned(tmp_path) as check:
        time.sleep(0.1)  # some heartbeats
        check()
        began = time.monotonic()
        with pytest.raises(WorkdirTakenError, match=r"another run \(process \d+ on .*take_over"):
            Ownership(tmp_path)
        assert time.monotonic() - began < 0.4  # its process is seen to live: nobody waits
        assert files(tmp_path) == [OWNER]
    assert files(tmp_path) == []
    with owned(tmp_path) as check:
        check()


@pytest.mark.parametrize("changes", [{"pid": "gone"}, {"process_start": "1"}])
def test_a_process_of_this_machine_that_is_gone_is_taken_over_at_once(tmp_path, changes):
    leave(tmp_path, **({"pid": gone_pid()} if "pid" in changes else changes))
    began = time.monotonic()
    with owned(tmp_path) as check:
        assert time.monotonic() - began < 0.4
        check()


def test_of_another_machine_the_heartbeat_decides(tmp_path):
    leave(tmp_path, machine="another", pid=1)
    began = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - began > 0.4
    record = json.loads((leave(tmp_path, machine="another") or tmp_path / OWNER).read_text())
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            record["beat"] += 1
            (tmp_path / OWNER).write_text(json.dumps(record))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(WorkdirTakenError, match="being written by another run"):
            Ownership(tmp_path)
    finally:
        stop.set()
        thread.join()


def test_whoever_was_taken_over_stops_before_its_next_write(tmp_path):
    with owned(tmp_path) as first, owned(tmp_path, take_over=True) as second:
        with pytest.raises(WorkdirTakenError, match="was taken over by another run"):
            first()
        time.sleep(0.1)  # heartbeats of both
        second()
        with pytest.raises(WorkdirTakenError):
            first()
    assert files(tmp_path) == []


def test_a_workdir_that_is_deleted_meanwhile_is_an_error(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with owned(workdir) as check:
        shutil.rmtree(workdir)
        with pytest.raises(WorkdirTakenError, match="was deleted or emptied"):
            check()
        workdir.mkdir()  # by somebody else: it is another one
        with pytest.raises(WorkdirTakenError, match="was deleted or emptied"):
            check()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"token": 3}', "x" * 5000])
def test_an_owner_file_that_says_nothing_is_waited_for(tmp_path, text):
    (tmp_path / OWNER).write_text(text)
    with owned(tmp_path) as check:
        check()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("dead", [True, False])
def test_of_many_that_take_it_at_once_one_gets_it(tmp_path, monkeypatch, links, dead):
    if dead:
        leave(tmp_path, pid=gone_pid())
    if not links:
        monkeypatch.setenv(faults.FAULT, "EOPNOTSUPP@owner.link:times=100000")
    start, won, lost = threading.Barrier(8), [], []

    def take():
        start.wait()
        try:
            won.append(Ownership(tmp_path))
        except WorkdirTakenError:
            lost.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].check()
    won[0].__exit__()
    assert files(tmp_path) == []


def test_a_store_on_which_both_create_the_file_is_read_again(tmp_path, monkeypatch):
    """Its last writer has it; the other one is not its owner."""
    other = json.dumps(dataclasses.asdict(ownership.Owner("other", machine=ownership.machine_id())))

    def both(name, step=None):
        if name == "owner.created":
            (tmp_path / OWNER).write_text(other)

    leave(tmp_path, pid=gone_pid())
    (tmp_path / OWNER).unlink()
    monkeypatch.setattr(ownership.faults, "point", both)
    monkeypatch.setattr(ownership, "is_gone", lambda owner: False)
    with pytest.raises(WorkdirTakenError):
        Ownership(tmp_path)


def test_a_heartbeat_that_fails_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(faults.FAULT, "EIO@owner.beat:times=3")
    with owned(tmp_path) as check:
        time.sleep(0.2)
        check()
    assert "heartbeat" in caplog.text


@pytest.mark.parametrize(("end", "left"), [("end_process", []), ("os._exit", [OWNER])])
def test_a_process_that_is_ended_at_once_gives_the_workdir_back(tmp_path, end, left):
    """As for a lost peer, a hang, a second signal: another machine would wait for two minutes."""
    code = (
        "import os\nfrom pathlib import Path\nfrom clipjax.checkpoint.ownership import owned\n"
        "from clipjax.processes.leaving import end_process\n"
        f"with owned(Path(os.getcwd())):\n    {end}(83)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert done.returncode == 83 and files(tmp_path) == left
