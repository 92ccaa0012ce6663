"""W1: two writers that want one workdir."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.checkpoint.killed_run import TOTAL_STEPS
from tests.faults.row import Row, Trial

ROOT = Path(__file__).parents[2]
NO_LINKS = {"CLIPJAX_FAULT": "EOPNOTSUPP@owner.link:times=100000"}


def start(workdir: Path, name: str, *flags: str, **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.two_writers", str(workdir), name, *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(Path(f"{workdir}.{name}"), process)
    return process


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def lines_of(workdir: Path) -> list[str]:
    return (workdir / "metrics.jsonl").read_text().splitlines()


def check(workdir: Path, reference: Path) -> None:
    """Every step stands once, with the loss of a run that was alone, and the last one is saved."""
    assert lines_of(workdir) == lines_of(reference), "the metrics are another run's"
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [TOTAL_STEPS - 2, TOTAL_STEPS], f"the steps {kept} are kept"
    manifests = [
        json.loads((d / "checkpoints" / str(TOTAL_STEPS) / "manifest.json").read_bytes())
        for d in (workdir, reference)
    ]
    assert manifests[0]["leaves"] == manifests[1]["leaves"], "the last state is another"
    assert not (workdir / "owner.json").exists(), "the workdir was not given back"


def alone(trial: Trial) -> Path:
    reference = trial.shared / "alone"
    if not reference.exists():
        Path(f"{reference}.go").touch()
        process = start(reference, "a")
        output = process.communicate()[0]
        assert process.returncode == 0, output
    return reference


def strike(trial: Trial, *flags: str) -> None:
    """Two at once: on a new workdir, one whose owner was killed, without links, by take_over."""
    reference, workdir, kind = alone(trial), trial.folder / "run", trial.index % 4
    environment = NO_LINKS if kind == 2 else {}
    go = Path(f"{workdir}.go")
    if kind in (1, 2):  # two restarts of a run that was killed
        go.touch()
        assert start(workdir, "dead", "--die", **environment).wait() == 9
        go.unlink()
    waits = ["--wait"] if kind == 3 and not flags else []
    writers = [start(workdir, "a", *flags, *waits, **environment)]
    if kind == 3:  # the second one comes while the first one is at work
        go.touch()
        wait_for(Path(f"{workdir}.a.at_8"), writers[0])
        flags = ("--take_over", *flags)
    writers.append(start(workdir, "b", *flags, **environment))
    go.touch()
    try:
        outputs = [writer.communicate(timeout=300)[0] for writer in writers]
    except subprocess.TimeoutExpired as error:
        raise AssertionError("a writer waits for ever") from error
    finally:
        for writer in writers:
            writer.kill()
    codes = [writer.returncode for writer in writers]
    told = dict(zip(codes, outputs, strict=True))
    assert sorted(codes) == [0, 1], f"the writers ended with {codes}: {outputs}"
    wanted = "was taken over by another run" if kind == 3 else "being written by another run"
    assert wanted in told[1] and "Traceback" not in told[1], told[1]
    assert kind != 3 or codes == [1, 0], "the one that was taken over went on"
    check(workdir, reference)


def unowned(trial: Trial) -> None:
    """Two writers that ask nobody."""
    strike(trial, "--unowned")


ROWS = [
    Row(
        name="W1",
        fault="two writers in one workdir at once: new, after a kill, without links, --take_over",
        holds="one ends bitwise as alone, every step once; the other stops with one sentence",
        trials=20,
        default=0,
        run=strike,
        control=unowned,
        others="none tests it",
    )
]
