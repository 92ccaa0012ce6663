"""Row K3: a run is asked to stop in each of its phases, in one process and in two."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

from clipjax.processes.exit_codes import OK, PREEMPTED
from tests.faults.row import Row, Trial
from tests.faults.row_m import STARTS_S, Two, losses

CONFIG = "tests/faults/stopped_run.py"
STEPS = 6
GRACE_S = 30  # that schedulers give before SIGKILL
EVERY_STEP = "--config.checkpoint.every_steps=1"
AT_END = "--config.evals.zero_shot.every_steps=0"


class Strike(NamedTuple):
    """Where a signal comes, and what must be kept.

    Attributes:
        fault: `action@point[:step=N]`.
        begun: the finished step that the run goes on from.
        saved: the step that it saves, at the earliest; None: it ends at once, having saved nothing.
        flags: of the run.
        by_lead: whether the other process does not come to the point.
        finishes: whether the run is started again and ends as if it had been left alone.
    """

    fault: str
    begun: int = 0
    saved: int | None = None
    flags: tuple[str, ...] = ()
    by_lead: bool = False
    finishes: bool = False


SAVES = ("before_copy", "mid_write", "before_manifest", "before_rename", "before_delete")
ENDS = ("report", f"loop.step:step={STEPS}", f"save.mid_write:step={STEPS}")
PHASES: dict[str, tuple[Strike, ...]] = {
    "start": tuple(
        Strike(f"term@{point}")
        for point in ("start.import", "start.join", "start.data", "start.train", "restore")
    ),
    "restore": tuple(Strike("term@restore", begun=step) for step in range(1, 6)),
    "compile": tuple(Strike("term@compile", begun=step) for step in range(5)),
    "step": tuple(
        Strike(f"term@loop.step:step={step}", saved=step, finishes=step == 3)
        for step in range(1, 6)
    ),
    "data wait": tuple(Strike(f"term@data.wait:step={s}", saved=s) for s in range(1, 6)),
    "evaluation": tuple(
        Strike(f"term@eval.batch:step={batch}", saved=1, finishes=batch == 0) for batch in range(5)
    ),
    "save": tuple(
        Strike(
            f"term@save.{point}:step=3",
            saved=3,
            flags=("--config.checkpoint.every_steps=3",),
            by_lead="before_copy" not in point and "mid" not in point,
        )
        for point in SAVES
    ),
    "end": (
        *(Strike(f"term@{p}", saved=STEPS, finishes=p == "report") for p in ENDS),
        *(Strike(f"term@eval.batch:step={b}", saved=STEPS, flags=(AT_END,)) for b in (0, 4)),
    ),
}
# "start" is added to the seven; a trial of each phase in one process and in two, then the next.
STRIKES = [(phase, count, case) for case in range(5) for count in (1, 2) for phase in PHASES]
OTHERS = [(name, count) for name in ("second", "hup", "int", "usr1", "nohup") for count in (1, 2)]


def run(trial: Trial, *, later: int = 0) -> None:
    if trial.index >= len(STRIKES):
        name, count = OTHERS[trial.index - len(STRIKES)]
        {"second": second_signal, "nohup": ignored}.get(name, stop_by)(trial, name, count)
        return
    phase, count, case = STRIKES[trial.index]
    strike = PHASES[phase][case]
    strike_by = 0 if strike.by_lead else case % count
    workdir = begun(trial, count, strike.begun)
    before = files_of(workdir)
    own = {strike_by: ((), {"CLIPJAX_FAULT": strike.fault})}
    with Two(trial, workdir, strike.flags, own, config=CONFIG, count=count) as processes:
        wait_for(processes, strike_by, "injected fault")
        end = time.monotonic() + GRACE_S
        joining = strike.fault in ("term@start.import", "term@start.join") and count == 2
        if joining:  # nobody can tell the other yet; launchers signal both
            processes.processes[1 - strike_by].terminate()
        for number in range(count):
            ended = processes.wait(number, max(1.0, end - time.monotonic()))
            # The other may not have come to hear anything, and ends as any program.
            allowed = {PREEMPTED, -signal.SIGTERM} if joining and number != strike_by else {80}
            assert ended.code in allowed, f"{strike}: {ended.code}\n{ended.shown[-1500:]}"
    if strike.saved is None:
        assert files_of(workdir) == before, f"{strike}: the workdir changed"
        return
    # A save is written beside the loop, which may have come further when it hears.
    check_saved(trial, workdir, count, strike.saved, later, exact=count == 1 and phase != "save")
    if strike.finishes:
        check_finished(trial, workdir, count, strike.flags)


def control(trial: Trial) -> None:
    """The state that was saved is compared with that of the step after it."""
    index = STRIKES.index(("step", 1, 0))
    run(Trial(index, trial.folder, trial.shared), later=1)


def stop_by(trial: Trial, name: str, count: int) -> None:
    """Another signal than SIGTERM, at a step."""
    workdir = trial.folder / "run"
    own = {count - 1: ((), {"CLIPJAX_FAULT": f"{name}@loop.step:step=2"})}
    with Two(trial, workdir, own=own, config=CONFIG, count=count) as processes:
        codes = [processes.wait(number).code for number in range(count)]
    assert codes == [PREEMPTED] * count, processes.shown(0)[-1500:]
    check_saved(trial, workdir, count, 2)


def ignored(trial: Trial, name: str, count: int) -> None:
    """A SIGHUP under nohup."""
    workdir = trial.folder / "run"
    own = {count - 1: ((), {"CLIPJAX_FAULT": "hup@loop.step:step=2"})}
    with Two(trial, workdir, own=own, config=CONFIG, count=count, prefix=["nohup"]) as processes:
        codes = [processes.wait(number).code for number in range(count)]
    assert codes == [OK] * count, processes.shown(0)[-1500:]
    check_saved(trial, workdir, count, STEPS)


def second_signal(trial: Trial, name: str, count: int) -> None:
    """One process hangs where it asks nobody; a signal does not end it, the second ends all."""
    workdir = trial.folder / "run"
    own = {count - 1: ((), {"CLIPJAX_FAULT": "hang@loop.step:step=2"})}
    with Two(trial, workdir, own=own, config=CONFIG, count=count) as processes:
        wait_for(processes, count - 1, "injected fault")
        for _ in range(2):
            assert processes.processes[0].poll() is None, "the first signal ended it"
            processes.processes[0].send_signal(signal.SIGTERM)
            wait_for(processes, 0, "a second signal")
        ends = [processes.wait(number, GRACE_S) for number in range(count)]
    assert [ended.code for ended in ends] == [128 + signal.SIGTERM] * count, ends[0].shown[-1500:]
    assert not list((workdir / "checkpoints").glob("*/manifest.json")), "it saved"


def wait_for(processes: Two, number: int, words: str) -> None:
    """Waits until a process has said something, or has ended."""
    end = time.monotonic() + STARTS_S
    while words not in processes.shown(number) and processes.processes[number].poll() is None:
        assert time.monotonic() < end, f"no {words!r}:\n{processes.shown(number)[-1500:]}"
        time.sleep(0.02)
    assert words in processes.shown(number), processes.shown(number)[-1500:]


def undisturbed(trial: Trial, count: int) -> Path:
    """A run that nothing disturbs and that saves every step; the trials of the row share it."""
    workdir = trial.shared / f"undisturbed_{count}"
    done = trial.shared / f"done_{count}"
    if not done.exists():
        shutil.rmtree(workdir, ignore_errors=True)
        finish(trial, workdir, count, (EVERY_STEP,))
        done.touch()
    return workdir


def finish(trial: Trial, workdir: Path, count: int, flags: tuple[str, ...]) -> None:
    """Starts a run, again or for the first time, and sees it to its end."""
    with Two(trial, workdir, flags, config=CONFIG, count=count) as processes:
        for number in range(count):
            ended = processes.wait(number)
            assert ended.code == OK, f"process {number}: {ended.code}\n{ended.shown[-1500:]}"


def begun(trial: Trial, count: int, step: int) -> Path:
    """The workdir of a run that stands at a step."""
    workdir = trial.folder / "run"
    if step:
        shutil.copytree(undisturbed(trial, count), workdir)
        for name in ("results.json", "report.html"):
            (workdir / name).unlink()
        for path in (workdir / "checkpoints").iterdir():
            if int(path.name) > step:
                shutil.rmtree(path)
        for name in ("metrics.jsonl", "evals.jsonl"):
            lines = (workdir / name).read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            (workdir / name).write_text("".join(kept))
    return workdir


def files_of(workdir: Path) -> dict[str, bytes]:
    """All that a run goes on from, checkpoints, metrics, results; without empty files."""
    paths = [p for p in workdir.rglob("*") if p.is_file() and p.stat().st_size]
    names = {str(p.relative_to(workdir)): p for p in paths}
    kept = ("checkpoints/", "metrics", "evals", "results")
    return {name: p.read_bytes() for name, p in names.items() if name.startswith(kept)}


def digests(workdir: Path, step: int) -> dict[str, str]:
    """leaf -> SHA-256 of a step that was saved."""
    manifest = json.loads((workdir / f"checkpoints/{step}/manifest.json").read_text())
    return {leaf["name"]: leaf["sha256"] for leaf in manifest["leaves"]}


def check_saved(
    trial: Trial,
    workdir: Path,
    count: int,
    at_least: int,
    later: int = 0,
    *,
    exact: bool | None = None,
) -> None:
    """The newest step that is saved is that of a run left alone, bitwise, with all its metrics."""
    found = (int(p.parent.name) for p in workdir.glob("checkpoints/*/manifest.json"))
    step = max(found, default=0)
    # Two processes stop where the one that is ahead can.
    last = at_least if (count == 1 if exact is None else exact) else STEPS
    assert at_least <= step <= last, f"step {step} is saved, expected {at_least}"
    whole = undisturbed(trial, count)
    assert digests(workdir, step) == digests(whole, step + later), f"another state at step {step}"
    expected = {s: loss for s, loss in losses(whole).items() if s <= step}
    assert losses(workdir) == expected, "other metrics"


def check_finished(trial: Trial, workdir: Path, count: int, flags: tuple[str, ...]) -> None:
    """Started again, it ends as the run that was left alone, with the evaluations it owed."""
    finish(trial, workdir, count, flags)
    whole = undisturbed(trial, count)
    check_saved(trial, workdir, count, STEPS)
    assert (workdir / "evals.jsonl").read_text() == (whole / "evals.jsonl").read_text()
    results = [json.loads((w / "results.json").read_text()) for w in (workdir, whole)]
    scores = [{k: v for k, v in r.items() if "/" in k} for r in results]
    assert scores[0] == scores[1] and all(r["checkpoint_sha256"] for r in results)
    assert (workdir / "report.html").exists()


ROWS = [
    Row(
        name="K3",
        fault="SIGTERM in start-up, restore, compilation, step, data wait, evaluation, save and "
        "end, in one process and in two; SIGHUP, SIGINT, SIGUSR1, nohup, a second signal",
        holds="exit 80 within 30 s; the current step is saved, bitwise that of a run left alone, "
        "or nothing is changed where nothing would be lost; a second signal: 143 in all processes",
        trials=len(STRIKES) + len(OTHERS),
        default=1,
        run=run,
        control=control,
        others="Orbax: a mocked sync point",
    )
]
