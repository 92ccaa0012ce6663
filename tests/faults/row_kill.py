"""K1, K2, K4: a training process is killed, at any time and inside a save, and started again."""

import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

from tests.faults.row import Row, Trial
from tests.faults.starting import ROOT, Started, environment, starter, wait_until

STEPS = 24  # two epochs of EXAMPLES
EXAMPLES = 96
KILLS = 5  # of a trial of K1 and of K2
POINTS = ("before_copy", "mid_write", "before_manifest", "before_rename", "before_delete")
FLAGS = (
    f"--config=tests/faults/tiny_run.py:steps={STEPS},batch_size=8",
    f"--config.data.source=synthetic:{EXAMPLES}",
    "--config.model.text.width=8",
    "--config.model.text.mlp_dim=16",
    "--config.checkpoint.keep=2",
)
TIMES = ("samples_per_s", "data_wait_fraction", "mfu", "goodput", "time_s/")  # that may differ


class Run:
    """A run that is started, killed and started again in one workdir."""

    def __init__(self, trial: Trial, name: str = "run", *, warm: bool, forked: bool = True) -> None:
        self.workdir, self.log = trial.folder / name, trial.folder / f"{name}.txt"
        # What one start compiled, a warm one loads; a cold one compiles again.
        self.cache, self.warm, self.forked = trial.shared / "compiled", warm, forked
        self.starts = 0

    def start(self, *flags: str, prepare: str = "", **changes: str) -> Any:
        """Starts `clipjax train`."""
        self.starts += 1
        cache = self.cache if self.warm else self.workdir.parent / f"compiled_{self.starts}"
        env = environment(cache, **changes)
        arguments = ("train", *FLAGS, *flags, f"--workdir={self.workdir}")
        if self.forked:
            return starter().start(*arguments, log=self.log, env=env, prepare=prepare)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "clipjax", *arguments],
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=log,
            )

    def finish(self, *flags: str, prepare: str = "") -> None:
        """Starts it and lets it come to its end."""
        code = self.start(*flags, prepare=prepare).wait()
        assert code == 0, f"exit {code}: {self.log.read_text(errors='replace')[-2000:]}"

    def killed(self, process: "Started | subprocess.Popen[bytes]") -> bool:
        """Whether SIGKILL came before the run's end; any other end is an error."""
        process.kill()
        code = process.wait()
        assert code in (0, -9), f"exit {code}: {self.log.read_text(errors='replace')[-2000:]}"
        return code == -9

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl without their times."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]

    def steps(self) -> list[int]:
        """Steps whose save is complete."""
        folder = self.workdir / "checkpoints"
        return sorted(int(p.parent.name) for p in folder.glob("[0-9]*/manifest.json"))

    def digests(self, step: int = STEPS) -> dict[str, str]:
        """leaf -> SHA-256 of a saved state."""
        path = self.workdir / "checkpoints" / str(step) / "manifest.json"
        return {leaf["name"]: leaf["sha256"] for leaf in json.loads(path.read_text())["leaves"]}


def reference(trial: Trial) -> Run:
    """The run that nothing disturbed, which keeps each step."""
    alone = Trial(0, trial.shared, trial.shared)
    run = Run(alone, "reference", warm=True)
    if not run.workdir.exists():
        made = Run(alone, f"making_{os.getpid()}", warm=True)
        made.finish("--config.checkpoint.every_steps=1", "--config.checkpoint.keep=1000")
        assert [row["step"] for row in made.rows()] == list(range(1, STEPS + 1))
        made.workdir.rename(run.workdir)
    return run


def assert_same(run: Run, trial: Trial) -> None:
    """Each line of metrics and each leaf of the last state is the undisturbed run's."""
    wanted = reference(trial)
    for mine, other in zip(run.rows(), wanted.rows(), strict=False):
        assert mine == other, f"metrics differ: {mine}, undisturbed {other}"
    assert len(run.rows()) == STEPS, f"{len(run.rows())} lines of metrics, {STEPS} steps"
    differing = [k for k, v in wanted.digests().items() if run.digests().get(k) != v]
    assert not differing, f"the last states differ in {differing[:3]}"
    names = sorted(p.name for p in (run.workdir / "checkpoints").iterdir())
    left = [name for name in names if "tmp" in name or "unfinished" in name or "damaged" in name]
    assert not left, f"left over: {left}"


def at_random_times(trial: Trial) -> None:
    """Two kills of three come among the steps and saves, one while the process starts."""
    reference(trial)
    # A fifth of the trials starts whole interpreters, half compile each time.
    run = Run(trial, warm=trial.index % 2 == 0, forked=trial.index % 5 != 4)
    rng, kills, start_s = trial.random, 0, 10.0
    while kills < KILLS:
        before, begin = len(run.rows()), time.monotonic()
        process = run.start()
        if kills % 3 == 2:
            delay = rng.uniform(0, start_s)
        else:
            wait_until(lambda before=before: len(run.rows()) > before, process)
            start_s, delay = time.monotonic() - begin, rng.uniform(0, 1.0)
        until = time.monotonic() + delay
        wait_until(lambda until=until: time.monotonic() > until, process)
        if run.killed(process):
            kills += 1
        else:  # it came to its end first
            assert_same(run, trial)
            shutil.rmtree(run.workdir)
    run.finish()
    assert_same(run, trial)


def inside_saves(trial: Trial) -> None:
    """The five points in one order, each at a later save."""
    reference(trial)
    run = Run(trial, warm=True)
    step = 2
    for number, point in enumerate(POINTS):
        step += 2 * trial.random.randint(1, 2)
        step = min(step, STEPS - 2 * (len(POINTS) - number))
        process = run.start(CLIPJAX_FAULT=f"kill@save.{point}:step={step}")
        code = process.wait()
        assert code == -9, f"{point} of step {step}: exit {code}: {process.tail()}"
        newest = max(run.steps(), default=0)
        expected = (step,) if point == "before_delete" else (step - 2, step - 4)
        assert newest in expected, f"{point} of step {step}: step {newest} is the newest"
        if newest:
            same = run.digests(newest) == reference(trial).digests(newest)
            assert same, f"{point}: step {newest} is another state"
    run.finish()
    assert_same(run, trial)


def from_each_step(trial: Trial, prepare: str = "") -> None:
    """What stands when a run is killed behind the save of a step goes on in a new process."""
    wanted, step = reference(trial), trial.index + 1
    run = Run(trial, warm=True)
    kept = run.workdir / "checkpoints" / str(step)
    shutil.copytree(wanted.workdir / "checkpoints" / str(step), kept)
    lines = (wanted.workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.workdir / "metrics.jsonl").write_text("".join(lines[:step]))
    run.finish("--config.checkpoint.every_steps=1000", prepare=prepare)  # saves are K2's
    assert_same(run, trial)


def lose_moments() -> None:
    """Spoils what a resumed run starts from: Adam's first moments are zero."""
    import jax
    import jax.numpy as jnp

    _spoil(
        lambda state: state.replace(
            opt_state=jax.tree.map(
                lambda x: jnp.zeros_like(x) if x.ndim > 1 else x, state.opt_state
            )
        )
    )


def _spoil(change: Any) -> None:
    import dataclasses

    from clipjax import train

    whole = train.find_start

    def find_start(*args: Any, **options: Any) -> Any:
        start = whole(*args, **options)
        return dataclasses.replace(start, state=change(start.state))

    train.find_start = find_start


def swap_batches() -> None:
    """Spoils the order of the data: a resumed run draws the batches of one step earlier."""
    from clipjax.data.loading import loader

    whole = loader.Loader.iterate

    def iterate(self: Any, start: int) -> Any:
        return ((step + 1, batch) for step, batch in whole(self, start - 1))

    loader.Loader.iterate = iterate  # type: ignore[method-assign]


def is_seen(trial: Trial) -> None:
    """A lost moment and a lost batch are both seen."""
    told = []
    for number, spoil in enumerate(("lose_moments", "swap_batches")):
        folder = trial.folder / spoil
        folder.mkdir()
        try:
            spoilt = Trial(9 + number, folder, trial.shared)
            from_each_step(spoilt, prepare=f"tests.faults.row_kill:{spoil}")
        except AssertionError as error:
            if "differ" not in str(error):
                raise RuntimeError(f"{spoil}: {error}") from error
            told.append(str(error))
    if len(told) == 2:
        raise AssertionError("; ".join(told))


HOLDS = (
    "the run goes on by itself; each number of its metrics and each byte of its last state is that "
    "of a run left alone; nothing is left over"
)
ROWS = [
    Row(
        name="K1",
        fault=f"SIGKILL at random times, {KILLS} in a run: while it starts, steps and saves",
        holds=HOLDS,
        trials=40,
        strikes=KILLS,
        default=0,
        run=at_random_times,
        control=is_seen,
        others="Levanter promises bitwise resumption, and round-trips a state; Composer compares "
        "whole checkpoints with tolerance 0, without a kill; MaxText: losses within 10 %",
    ),
    Row(
        name="K2",
        fault="SIGKILL in a save: before the copy, mid-write, before the manifest, before the "
        "rename, before old steps are deleted",
        holds=HOLDS,
        trials=20,
        strikes=len(POINTS),
        default=0,  # tests/checkpoint/test_killed_runs.py has one such kill
        run=inside_saves,
        control=is_seen,
        others="Orbax: a temporary folder that was made up, and a mock of its last move",
    ),
    Row(
        name="K4",
        fault="Two tiny epochs, resumed in a new process from each of their steps",
        holds=HOLDS,
        trials=STEPS,
        default=0,
        run=from_each_step,
        control=is_seen,
        others="torchtitan: one or two steps; kauldron: the rest of the data from one step",
    ),
]
