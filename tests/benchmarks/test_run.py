"""benchmarks/run.py: sides take turns, every case is written, check.py reads the record."""

import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks import check, run
from benchmarks.common import ROOT, MissingError
from benchmarks.run_cases import CASES, CLIPJAX, COMPILED, EAGER


class FakeWorker:
    """Answers at once; notes its turns."""

    turns: list[str] = []  # noqa: RUF012  of all workers, emptied by each test
    seconds = {CLIPJAX: 1.0, EAGER: 1.5, COMPILED: 2.0}  # noqa: RUF012
    missing: dict[str, Exception] = {}  # noqa: RUF012

    def __init__(self, command):
        self.side = command[-1]

    def ask(self, word, *, limit_s=0.0):
        if self.side in self.missing:
            raise self.missing[self.side]
        if word == "time":
            self.turns.append(self.side)
        return {"wall_s": self.seconds[self.side], "cpu_s": 1.0, "value": 3.0}

    def close(self):
        self.turns.append(f"{self.side} closed")


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(run, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "turns", [])
    return FakeWorker


def step_case():
    return next(name for name, case in CASES.items() if COMPILED in case.sides)


def test_whoever_began_a_turn_ends_the_next(workers):
    rows = run.case_rows(step_case(), CASES[step_case()], turns=2)
    order = [CLIPJAX, EAGER, COMPILED]
    assert workers.turns[:6] == order + order[::-1]
    assert sorted(workers.turns[6:]) == sorted(f"{side} closed" for side in order)
    ratios = {row["peer"]: (row["wall_ratio"], row["wall_noise"], row["cpu_ratio"]) for row in rows}
    assert ratios == {EAGER: (1.5, 0.0, 1.0), COMPILED: (2.0, 0.0, 1.0)}


def test_a_side_that_is_not_there_is_a_row(workers, monkeypatch):
    error = MissingError("torch is not installed")
    monkeypatch.setattr(workers, "missing", {EAGER: error, COMPILED: run.WorkerError("no answer")})
    rows = run.case_rows(step_case(), CASES[step_case()], turns=2)
    assert [(row["peer"], row["status"], row["reason"]) for row in rows] == [
        (EAGER, "missing", "torch is not installed"),
        (COMPILED, "failed", "no answer"),
    ]
    monkeypatch.setattr(workers, "missing", {CLIPJAX: error})
    (row,) = run.case_rows(step_case(), CASES[step_case()], turns=2)
    assert (row["peer"], row["status"]) == (CLIPJAX, "missing")


@pytest.mark.parametrize("turns", [0, 2])
def test_a_side_that_ends_during_the_turns_is_a_row(workers, monkeypatch, turns):
    def ask(self, word, *, limit_s=0.0):
        if word == "time" and self.side == EAGER and self.turns.count(COMPILED) == turns:
            raise run.WorkerError("ended with exit code -9: Killed")
        return FakeWorker.answer(self, word, limit_s=limit_s)

    monkeypatch.setattr(FakeWorker, "answer", FakeWorker.ask, raising=False)
    monkeypatch.setattr(FakeWorker, "ask", ask)
    rows = run.case_rows(step_case(), CASES[step_case()], turns=3)
    assert [(row["peer"], row["status"]) for row in rows] == [(COMPILED, "ok"), (EAGER, "failed")]
    assert rows[0]["wall_ratio"] == 2.0 and "exit code -9" in rows[1]["reason"]
    assert workers.turns.count(CLIPJAX) == workers.turns.count(COMPILED) == 3
    assert workers.turns.count(f"{EAGER} closed") == 1


def test_two_records_of_a_day_have_two_names(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run"])
    name = run.parse().out.name
    assert re.fullmatch(r"cpu_\d{4}-\d\d-\d\d_\d{4}\.json", name)


def test_every_side_of_every_case_is_one_that_a_process_knows():
    for name, case in CASES.items():
        assert case.sides[0] == CLIPJAX and set(case.sides) <= {CLIPJAX, EAGER, COMPILED}
        assert case.what in ("step", "embed", "head")
        assert case.size.dtype == (name.rpartition(", ")[2] if ", " in name else "float32")


@pytest.mark.slow
def test_a_record_of_this_machine_is_compared_with_the_one_before(tmp_path):
    """The door: a stand-in's step, without the peer; then the record beside itself."""
    folder = tmp_path / "no_torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    out = tmp_path / "new.json"
    command = [sys.executable, "-m", "benchmarks.run", "--turns", "2", "--cases", "tiny"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr  # a side is missing, and said
    record = json.loads(out.read_text())
    assert check.record(out) == record
    (row,) = record["rows"]
    assert row == {
        "case": "tiny",
        "peer": EAGER,
        "status": "missing",
        "reason": "torch is not installed",
    }
    assert record["machine"]["cores"] >= 1 and record["versions"]["jax"] != "absent"
