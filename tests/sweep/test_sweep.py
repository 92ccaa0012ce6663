"""`clipjax sweep`: its grid, which runs are done, what it starts, and what it says of them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from counting import wait_until

from clipjax.checkpoint import owned
from clipjax.processes import launching
from clipjax.report.curves import chart
from clipjax.sweep import (
    Axis,
    Outcome,
    Point,
    Run,
    metrics_shown,
    parse_axis,
    points,
    ranked,
    run_all,
    sweep_page,
    to_json,
    to_text,
)

ROOT = Path(__file__).parents[2]


def test_a_grid_is_read():
    assert parse_axis("optimizer.learning_rate=1e-3,2e-3") == Axis(
        "optimizer.learning_rate", ("1e-3", "2e-3")
    )
    assert parse_axis("config.data.source=tar:/d/{0..9,x}.tar,'a,b'").values == (
        "tar:/d/{0..9,x}.tar",
        "'a,b'",
    )
    axes = [Axis("a", ("1", "2")), Axis("b.c", ("x", "y"))]
    found = points(axes)
    assert [point.name for point in found] == [
        "a=1__b.c=x",
        "a=1__b.c=y",
        "a=2__b.c=x",
        "a=2__b.c=y",
    ]
    assert found[1].overrides == ["--config.a=1", "--config.b.c=y"]
    odd = (
        Point((("data.source", "tar:/d/{0..9}.tar"),)).name,
        Point((("data.source", "tar:/d-{0..9}.tar"),)).name,
    )
    assert odd[0] != odd[1] and not set("/:{}") & set("".join(odd))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate", "expected FIELD=VALUE"),
        ("a=1,,2", "a value is empty"),
        ("a=1,1", "stands twice"),
        ("a=(1,2", "( is not closed"),
        ("a=1),2", "closed that was not opened"),
        ("a='1,2", "' is not closed"),
    ],
)
def test_a_grid_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match="--grid") as error:
        parse_axis(text)
    assert message in str(error.value)
    with pytest.raises(ValueError, match="given twice"):
        points([Axis("a", ("1",)), Axis("a", ("2",))])


def test_the_commands_are_printed_and_nothing_runs(command, tmp_path):
    flags = ("--config", "configs/smoke.py:steps=4", "--config.log_every=2", "--workdir", tmp_path)
    grid = ("--grid", "optimizer.learning_rate=1e-3,2e-3", "--grid=seed=0,1", "--print")
    done = command("sweep", *flags, *grid)
    assert done.code == 0, done.err
    lines = [shlex.split(line) for line in done.out.splitlines()]
    assert lines[0] == [
        *("clipjax", "train", "--config", "configs/smoke.py:steps=4", "--config.log_every=2"),
        *("--config.optimizer.learning_rate=1e-3", "--config.seed=0", "--workdir"),
        str(tmp_path / "optimizer.learning_rate=1e-3__seed=0"),
    ]
    assert len(lines) == 4 and list(tmp_path.iterdir()) == []
    done = command("sweep", *flags, *grid, "--launcher=bash launch/local.sh 2")
    assert done.out.splitlines()[3].startswith("bash launch/local.sh 2 --config configs/smoke.py")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("optimizer.learning_rat=1,2", "Did you mean"),
        ("batch_size=32,31.5", "batch_size"),
        ("schedule.warmup_steps=2,9999", "is not below config.total_steps"),
    ],
)
def test_every_run_is_looked_at_before_the_first_begins(command, tmp_path, grid, message):
    done = command("sweep", "--config=configs/smoke.py", f"--workdir={tmp_path}", f"--grid={grid}")
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
    assert list(tmp_path.iterdir()) == []


# A training by its outside: what it leaves in its workdir, and how it ends.
RUN = """
import json, os, pathlib, signal, sys, time
from clipjax.processes import exit_record
plan, workdir = sys.argv[1], pathlib.Path(sys.argv[-1])
workdir.mkdir(parents=True, exist_ok=True)
with open(workdir / "starts", "a") as file:
    where = os.environ.get("CLIPJAX_COORDINATOR", "alone")
    file.write(os.environ["CLIPJAX_LAUNCH"] + " " + where + "\\n")
exit_record.open_record(workdir, is_lead=True)
exit_record.begin(0)
if plan == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (exit_record.end(80), os._exit(80)))
    (workdir / "waits").touch()
    time.sleep(60)
code = int(plan)
(workdir / "metrics.jsonl").write_text(json.dumps({"step": 4, "loss": 1.5}) + "\\n")
exit_record.end(code, "as planned")
os._exit(code)
"""


@pytest.fixture
def run_of(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def make(name, plan):
        workdir = tmp_path / name
        command = (sys.executable, "-S", str(script), plan, "--workdir", str(workdir))
        return Run(Point((("seed", name),)), workdir, command, "0" * 64, False)

    return make


def starts(run):
    return (run.workdir / "starts").read_text().splitlines()


@pytest.mark.parametrize("stop_at_failure", [False, True])
def test_a_failed_run_is_said_and_the_rest_goes_on_or_not(run_of, stop_at_failure, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runs, said = [run_of("0", "1"), run_of("1", "0")], []
    outcomes = run_all(runs, say=said.append, stop_at_failure=stop_at_failure, supervised=True)
    assert outcomes[0].state == "failed" and outcomes[0].why == "as planned"
    assert any("exit 1" in line for line in said)
    assert (runs[1].workdir / "starts").exists() != stop_at_failure
    assert starts(runs[0])[0].endswith(" alone")
    assert outcomes[0].metrics == {"loss": 1.5}


def test_a_run_that_hangs_is_started_again_as_by_a_launcher(run_of, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CLIPJAX_RESTARTS", "2")
    run = run_of("0", "82")
    (outcome,) = run_all([run], say=lambda _: None, stop_at_failure=False, supervised=True)
    assert outcome.state == "failed" and len(starts(run)) == 3
    (outcome,) = run_all([run], say=lambda _: None, stop_at_failure=False, supervised=False)
    assert len(starts(run)) == 4  # its launcher has done so


def test_what_stops_the_sweep_stops_its_run_and_begins_no_other(run_of, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runs = [run_of("0", "wait"), run_of("1", "0")]

    def ask():
        wait_until((runs[0].workdir / "waits").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    asking = threading.Thread(target=ask)
    asking.start()
    outcomes = run_all(runs, say=lambda _: None, stop_at_failure=False, supervised=True)
    asking.join()
    assert [outcome.state for outcome in outcomes] == ["stopped", "not run"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_a_killed_sweep_has_left_is_let_alone(run_of, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runs, said = [run_of("0", "0"), run_of("1", "1")], []

    def again():
        return run_all(runs, say=said.append, stop_at_failure=False, supervised=True)

    runs[0].workdir.mkdir()
    with owned(runs[0].workdir):
        outcomes = again()
        assert not (runs[0].workdir / "starts").exists()
    assert [outcome.state for outcome in outcomes] == ["goes on", "failed"]
    assert f"process {os.getpid()} on " in outcomes[0].why and "goes on already" in said[0]
    again()
    assert len(starts(runs[0])) == 1


def outcome(name, state="finished", **metrics):
    run = Run(
        Point((("optimizer.b1", name), ("seed", "0"))), Path("runs") / name, ("x",), {}, False
    )
    loss = [(1, 2.0), (2, metrics.get("loss", 1.0))]
    return Outcome(run, state, "out of luck" if state == "failed" else "", 2, metrics, loss)


def test_the_table_ranks_the_runs():
    found = [
        outcome("0.8", loss=2.0, **{"zero_shot/x/top1": 0.25}),
        outcome("0.9", loss=float("nan"), **{"zero_shot/x/top1": 0.5}),
        outcome("0.95", "failed"),
    ]
    metrics = metrics_shown(found, ())
    assert metrics == ["zero_shot/x/top1", "-loss"]
    lines = to_text(found, metrics).splitlines()
    assert lines[0].split() == ["b1", "seed", "zero_shot/x/top1", "loss", "step", "state"]
    assert [line.split()[0] for line in lines[1:4]] == ["0.9", "0.8", "0.95"]
    assert lines[4] == "optimizer.b1=0.95__seed=0: failed: out of luck"
    assert [o.run.point.values[0][1] for o in ranked(found, "-loss")] == ["0.8", "0.9", "0.95"]
    document = to_json(found, metrics)
    json.dumps(document, allow_nan=False)
    assert document["runs"][0]["metrics"]["loss"] is None
    with pytest.raises(ValueError, match="no run has it; there are loss, zero_shot/x/top1"):
        metrics_shown(found, ["top2"])


def test_the_page_shows_table_and_losses():
    found = [outcome(f"<{n}>", loss=1.0 + n) for n in range(8)]
    page = sweep_page("Sweep", found, ["-loss"])
    assert "&lt;3&gt;" in page and "<3>" not in page
    assert page.count("<svg") == 2  # of six and of two lines
    assert "8 of 8 runs finished; ranked by loss" in page
    first = chart("Loss, 1 of 2", {f"<{n}>, 0": found[n].loss for n in range(6)})
    assert first in page


@pytest.mark.slow
def test_a_sweep_of_the_smoke_config(tmp_path):
    """Two real runs: finished, one of them lost, and both made longer."""
    flags = ("--config", "configs/smoke.py:steps=4", "--workdir", tmp_path / "sweep")
    grid = ("--grid", "optimizer.learning_rate=1e-3,2e-3", "--config.schedule.warmup_steps=1")
    argv = [sys.executable, "-m", "clipjax", "sweep", *map(str, (*flags, *grid))]

    def sweep(*more):
        return subprocess.run(
            [*argv, *more], cwd=ROOT, capture_output=True, text=True, timeout=1800
        )

    done = sweep()
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [run.name for run in runs] == [f"optimizer.learning_rate={n}e-3" for n in (1, 2)]
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [run["state"] for run in found["runs"]] == ["finished"] * 2
    assert "zero_shot/synthetic_128/top1" in found["runs"][0]["metrics"]
    assert "1e-3" in done.stdout and (tmp_path / "sweep" / "sweep.html").exists()
    before = {run: (run / "exit.json").read_text() for run in runs}
    (runs[1] / "exit.json").unlink()
    again = sweep()
    assert again.returncode == 0 and again.stdout.count("finished before") == 1
    assert (runs[0] / "exit.json").read_text() == before[runs[0]]
    other = sweep("--config.total_steps=6")  # another recipe: each run says so itself
    assert other.returncode == 1 and other.stdout.count(": exit 1 after") == 2, other.stdout
    assert "config.total_steps" in other.stdout
    longer = sweep("--config.total_steps=6", "--config.allow_config_change=true")
    assert longer.returncode == 0 and launching.newest_step(runs[0]) == 6, longer.stdout
