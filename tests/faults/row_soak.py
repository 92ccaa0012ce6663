"""SOAK: a long run with worker processes needs no more at its end than after its start."""

import os
import statistics
import time
from pathlib import Path
from typing import Any

from tests.faults.row import Row, Trial
from tests.faults.row_kill import FLAGS
from tests.faults.starting import environment, starter

STEPS = 50_000
SAMPLES = 40  # of a run, evenly
SOAK = (
    f"--config.total_steps={STEPS}",
    "--config.log_every=100",
    f"--config.checkpoint.every_steps={STEPS // SAMPLES}",
    "--config.data.workers=processes",
    "--config.data.num_workers=2",
)
# How much more the last quarter may need than the second one, in the mean.
MEMORY, COUNT = 1.05, 1.0


def family(pid: int) -> list[int]:
    """A process and those that it started."""
    found, more = [], [pid]
    while more:
        found.append(more.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            more += map(int, task.read_text().split())
    return found


def usage(pid: int) -> dict[str, int]:
    """Resident bytes, descriptors and threads of a process and those that it started."""
    total = {"bytes": 0, "descriptors": 0, "threads": 0}
    for each in family(pid):
        folder = Path(f"/proc/{each}")
        total["bytes"] += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        total["descriptors"] += len(os.listdir(folder / "fd"))
        total["threads"] += len(os.listdir(folder / "task"))
    return total


def watch(process: Any, workdir: Path) -> list[dict[str, int]]:
    """What it needs, each time that a step is saved."""
    samples: list[dict[str, int]] = []
    newest = 0
    while process.poll(1.0) is None:
        saved = workdir.glob("checkpoints/*/manifest.json")
        step = max((int(p.parent.name) for p in saved if p.parent.name.isdigit()), default=0)
        if step > newest:
            newest = step
            time.sleep(0.2)  # the threads of the save are over
            try:
                samples.append(usage(process.pid) | {"step": step})
            except OSError:
                continue  # one of them has just ended
    return samples


def assert_flat(samples: list[dict[str, int]]) -> None:
    """The last quarter needs what the second needs."""
    quarter = len(samples) // 4
    assert quarter >= 2, f"{len(samples)} samples"
    for name, limit in (("bytes", MEMORY), ("descriptors", COUNT), ("threads", COUNT)):
        values = [sample[name] for sample in samples]
        early = statistics.median(values[quarter : 2 * quarter])
        late = statistics.median(values[-quarter:])
        assert late <= early * limit, f"{name}: {early} in the second quarter, {late} in the last"


def soak(trial: Trial, *flags: str, prepare: str = "") -> None:
    """One run, from its start to its end."""
    workdir = trial.folder / "run"
    process = starter().start(
        *("train", *FLAGS, *SOAK, *flags, f"--workdir={workdir}"),
        log=trial.folder / "run.txt",
        env=environment(trial.shared / "compiled"),
        prepare=prepare,
    )
    samples = watch(process, workdir)
    assert process.returncode == 0, process.tail()
    assert_flat(samples)


def leak() -> None:
    """Spoils the run: each step keeps a descriptor and 100 kB."""
    from clipjax.data.loading import loader

    whole, kept = loader.Loader.iterate, []

    def iterate(self: Any, start: int) -> Any:
        for batch in whole(self, start):
            kept.append((os.open(os.devnull, os.O_RDONLY), b"x" * 100_000))
            yield batch

    loader.Loader.iterate = iterate  # type: ignore[method-assign]


def leaks(trial: Trial) -> None:
    """A short run that leaks is seen."""
    short = ("--config.total_steps=480", "--config.checkpoint.every_steps=20")
    soak(trial, *short, prepare="tests.faults.row_soak:leak")


ROWS = [
    Row(
        name="SOAK",
        fault=f"{STEPS:,} steps with two worker processes and {SAMPLES} saves",
        holds="memory (5 %), descriptors and threads of all its processes are in the last quarter "
        "what they were in the second",
        trials=1,
        default=0,
        run=soak,
        control=leaks,
        others="no test of it was found",
    ),
]
