"""Which runs of a sweep are done, and running the others."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipjax.checkpoint import choose_step, is_same_run, living_owner
from clipjax.evals.running import read_results
from clipjax.metric_writers import TRAIN_FILE
from clipjax.processes import exit_record
from clipjax.processes.exit_codes import OK, ending
from clipjax.processes.launching import Local, newest_step, supervise
from clipjax.report.curves import Points
from clipjax.report.writing import read_curves
from clipjax.sweep.grid import Point

FINISHED, FAILED, STOPPED, OPEN = "finished", "failed", "stopped", "not run"
GOES_ON = "goes on"  # by itself: the sweep that began it was killed


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Attributes:
        point: its values.
        workdir: its folder.
        command: that trains it.
        config: as plain data.
        is_evaluated: whether its config has evaluations.
        samples: examples of all its steps.
        forward_flops: of both towers' forward passes, one example.
    """

    point: Point
    workdir: Path
    command: tuple[str, ...]
    config: Mapping[str, Any]
    is_evaluated: bool
    samples: int = 0
    forward_flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        run: which.
        state: FINISHED, FAILED, STOPPED, GOES_ON or OPEN.
        why: of a run that failed, was stopped or goes on, a sentence.
        step: of its newest checkpoint; -1 where there is none.
        metrics: the last value of each training metric, and the results of its evaluations.
        loss: (step, loss) while it trained.
    """

    run: Run
    state: str
    why: str
    step: int
    metrics: Mapping[str, float]
    loss: Points


def is_finished(run: Run) -> bool:
    """Whether the workdir holds the run to its end, of this config."""
    record = exit_record.read(run.workdir) or {}
    if record.get("code") != OK:
        return False
    try:
        manifest = choose_step(run.workdir).manifest
    except ValueError:
        return False
    if manifest.step != record.get("step") or not is_same_run(manifest.config, run.config):
        return False
    return not run.is_evaluated or read_results(run.workdir).get("step") == manifest.step


def outcome_of(run: Run) -> Outcome:
    """Reads what a run has left in its workdir."""
    record = exit_record.read(run.workdir) or {}
    code, state, why = record.get("code"), OPEN, ""
    if is_finished(run):
        state = FINISHED
    elif owner := living_owner(run.workdir):
        state, why = GOES_ON, f"{owner}, trains it: wait for its end, or stop it; then start again"
    elif isinstance(code, int) and code != OK:
        state = STOPPED if ending(code).again else FAILED
        why = str(record.get("reason") or ending(code).meaning)
    curves = read_curves(run.workdir / TRAIN_FILE)
    last = {name: points[-1][1] for name, points in curves.items()}
    results = {k: v for k, v in read_results(run.workdir).items() if k != "step"}
    return Outcome(
        run, state, why, newest_step(run.workdir), {**last, **results}, curves.get("loss", ())
    )


def run_all(
    runs: Sequence[Run],
    *,
    say: Callable[[str], None],
    stop_at_failure: bool,
    supervised: bool,
) -> list[Outcome]:
    """Runs what is not finished, one after another.

    Args:
        runs: in their order.
        say: takes a line for a person.
        stop_at_failure: begin no further run behind one that failed.
        supervised: start a run again as launchers do; False where its command does so itself.

    Returns:
        What came of each, also of those that were not begun.
    """
    failed: dict[Path, str] = {}
    for number, run in enumerate(runs, 1):
        if is_finished(run):
            say(f"run {number} of {len(runs)}, {run.point.name}: finished before")
            continue
        if owner := living_owner(run.workdir):
            say(f"run {number} of {len(runs)}, {run.point.name}: goes on already, {owner}")
            continue
        say(f"run {number} of {len(runs)}, {run.point.name}: begins")
        begin = time.monotonic()
        process = Local(1, list(run.command), joined=False)
        code = supervise(process, run.workdir if supervised else None)
        took = f"after {time.monotonic() - begin:.0f} s"
        if process.signalled:
            say(f"run {number} of {len(runs)}, {run.point.name}: stopped {took}, as asked")
            break
        if code == OK:
            say(f"run {number} of {len(runs)}, {run.point.name}: finished {took}")
            continue
        record = exit_record.read(run.workdir) or {}
        meaning = record.get("reason") if record.get("code") == code else None
        failed[run.workdir] = str(meaning or ending(code).meaning)
        say(f"run {number} of {len(runs)}, {run.point.name}: exit {code} {took}")
        if stop_at_failure:
            break
    outcomes = [outcome_of(run) for run in runs]
    return [
        dataclasses.replace(o, state=FAILED, why=failed[o.run.workdir])
        if o.run.workdir in failed
        else o
        for o in outcomes
    ]
