"""Two processes of one run: who owns its workdir, and what a fault of one of them does to both."""

import json
import signal
import time

import pytest

from clipjax.checkpoint.ownership import OWNER
from clipjax.processes.exit_codes import FAILED, OK, PEER_LOST, PREEMPTED
from tests.faults.row import Trial
from tests.faults.row_m import LOST_S, STARTS_S, STEPS, TOLD_S, Two, finish

pytestmark = pytest.mark.nightly
SLOW_EVAL = "slow@eval.batch:times=1000000"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shared):
    """A finished run of two processes."""
    folder = tmp_path_factory.mktemp("trained")
    finish(Trial(0, folder, shared), folder / "run")
    return folder / "run"


def wait_until(two, number, condition):
    end = time.monotonic() + STARTS_S
    while not condition():
        assert two.processes[number].poll() is None, two.shown(number)[-1500:]
        assert time.monotonic() < end, two.shown(number)[-1500:]
        time.sleep(0.05)


def test_the_lead_owns_the_workdir_for_both(tmp_path, shared):
    trial, workdir = Trial(0, tmp_path, shared), tmp_path / "run"
    with Two(trial, workdir, [f"--config.total_steps={1000 * STEPS}"]) as two:
        two.wait_for_step(workdir, 1)
        owner = json.loads((workdir / OWNER).read_text())
        assert owner["pid"] == two.processes[0].pid
        with Two(trial, workdir) as others:
            ends = [others.wait(number) for number in range(2)]
        assert [ended.code for ended in ends] == [FAILED] * 2
        for ended in ends:
            assert "is being written by another run" in ended.shown, ended.shown
        assert json.loads((workdir / "exit.json").read_text())["state"] == "running"
        two.processes[1].terminate()  # the one that owns nothing
        assert [two.wait(number).code for number in range(2)] == [PREEMPTED] * 2, two.shown(1)
    assert not (workdir / OWNER).exists()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("point", ["read_manifest", "restore"])
def test_what_one_of_two_cannot_read_stops_both_and_condemns_nothing(
    tmp_path, shared, trained, number, point
):
    before = sorted(p.name for p in (trained / "checkpoints").iterdir())
    own = {number: ((), {"CLIPJAX_FAULT": f"EIO@checkpoint.{point}:times=1000"})}
    with Two(Trial(0, tmp_path, shared), trained, own=own) as two:
        failed = two.wait(number)
        other = two.wait(1 - number, TOLD_S)
    assert failed.code == FAILED, failed.shown[-1500:]
    assert "Input/output error" in failed.shown.splitlines()[-1]
    assert other.code in (FAILED, PEER_LOST), other.shown[-1500:]
    assert "Input/output error" in other.shown.splitlines()[-1]
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == before
    finish(Trial(0, tmp_path, shared), trained)  # nothing is lost


@pytest.mark.parametrize("signalled", [(0,), (1,), (0, 1)])
def test_an_evaluation_in_two_processes_hears_sigterm(tmp_path, shared, trained, signalled):
    verb = ("eval", f"--checkpoint={trained}", "--zero_shot=synthetic:64", "--batch_size=2")
    own = {number: ((), {"CLIPJAX_FAULT": SLOW_EVAL}) for number in range(2)}
    with Two(Trial(0, tmp_path, shared), tmp_path / "eval", own=own, verb=verb) as two:
        for number in range(2):
            wait_until(two, number, lambda number=number: "injected fault" in two.shown(number))
        for number in signalled:
            two.processes[number].terminate()
        ends = [two.wait(number, LOST_S) for number in range(2)]
    for number, ended in enumerate(ends):
        codes = {-signal.SIGTERM, 128 + signal.SIGTERM}
        if number not in signalled:
            codes = {PEER_LOST}
        assert ended.code in codes, f"process {number}: {ended.code}\n{ended.shown[-1500:]}"
        assert "Traceback" not in ended.shown


def test_an_evaluation_in_two_processes_ends_as_it_does_alone(tmp_path, shared, trained):
    found = []
    for count in (1, 2):
        table = tmp_path / f"{count}.json"
        verb = ("eval", f"--checkpoint={trained}", "--zero_shot=synthetic:64", f"--json={table}")
        trial = Trial(0, tmp_path, shared)
        with Two(trial, tmp_path / f"eval_{count}", count=count, verb=verb) as processes:
            for number in range(count):
                ended = processes.wait(number)
                assert ended.code == OK, ended.shown[-1500:]
        found.append(json.loads(table.read_text()))
    assert found[0] == found[1]
