"""E1, E2: a run that was killed goes on with another number of devices, or of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from clipjax.files import sha256
from tests.faults.row import Row, Trial
from tests.helpers.checkpoints import saved_arrays
from tests.helpers.xla_flags import COUNT, QUICK

ROOT = Path(__file__).parents[2]
STEPS = 12
CONFIG = f"--config=tests/faults/tiny_run.py:steps={STEPS}"
# What is sharded: the optimizer's state, or the parameters too.
ZERO1 = ()
FSDP = ("--config.sharding=fsdp", "--config.mesh.data=1", "--config.mesh.fsdp=-1")
# (processes, devices of each) before the kill and after it.
DEVICES = tuple(
    ((1, before), (1, after))
    for before, after in ((8, 4), (4, 2), (2, 1), (1, 2), (2, 4), (4, 8), (8, 1), (1, 8), (8, 2))
)
ONE, TWO = (1, 2), (2, 1)
PROCESSES = ((ONE, TWO), (TWO, ONE)) * 4 + (((1, 8), (2, 2)), ((2, 2), (1, 1)))


def train(trial, workdir, processes, devices, *flags, **environment):
    """Runs the command in so many processes; returns how it ended."""
    command = [sys.executable, "-m", "tests.faults.restoring"]
    if processes > 1:
        environment["CLIPJAX_COMMAND"] = " ".join(command)
        command = ["bash", "launch/local.sh", str(processes)]
    else:
        command.append("train")
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "CLIPJAX_FAULT")}
    kept["PYTHONPATH"] = f"{ROOT}{os.pathsep}{kept.get('PYTHONPATH', '')}"
    kept.setdefault("JAX_COMPILATION_CACHE_DIR", str(trial.shared / "compiled"))
    return subprocess.run(
        [*command, CONFIG, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={
            **kept,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of the time
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": " ".join([*QUICK, f"{COUNT}={devices}"]),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=1200,
    )


def losses_of(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def reference(trial):
    """Losses of a run on one device that was left alone."""
    workdir = trial.shared / "reference"
    if not workdir.exists():
        made = trial.shared / f"making_{os.getpid()}"
        done = train(trial, made, 1, 1, RESTORED=str(trial.folder))
        assert done.returncode == 0, done.stderr[-2000:]
        made.rename(workdir)
    return losses_of(workdir)


def complaints(trial, before, after, table, **environment):
    """What does not hold of a run that was killed and went on elsewhere."""
    wanted, workdir = reference(trial), trial.folder / "run"
    step = trial.random.randrange(5, STEPS)  # the save of step 2 is done then
    done = train(
        trial,
        workdir,
        *before,
        *table,
        RESTORED=str(trial.folder),
        CLIPJAX_FAULT=f"kill@loop.step:step={step}",
    )
    killed_with = {137} if before[0] > 1 else {-9}
    assert done.returncode in killed_with, f"{done.returncode}: {done.stderr[-2000:]}"
    steps = [int(p.parent.name) for p in (workdir / "checkpoints").glob("[0-9]*/manifest.json")]
    saved = saved_arrays(workdir / "checkpoints" / str(max(steps)))
    restored = trial.folder / "restored"
    restored.mkdir()
    done = train(trial, workdir, *after, *table, RESTORED=str(restored), **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [f"step {max(steps)}: {line}" for line in differing(saved, restored, after[0])]
    losses = losses_of(workdir)
    if losses.keys() != wanted.keys():
        found.append(f"losses of the steps {sorted(losses)}, expected {sorted(wanted)}")
    far = {s: abs(losses[s] / wanted[s] - 1) for s in losses.keys() & wanted.keys()}
    found += [f"loss of step {s} is {x:.1e} away" for s, x in sorted(far.items()) if not x <= 1e-4]
    return found


def differing(saved, restored, processes):
    """The leaves of which a process holds other bytes than those that were saved."""
    seen = set()
    for process in range(processes):
        for name, parts in json.loads((restored / f"{process}.json").read_text()).items():
            seen.add(name)
            for part, digest in parts.items():
                index = tuple(slice(*each) for each in json.loads(part))
                if sha256(saved[name][index].tobytes()) != digest:
                    yield f"process {process} holds another {name} at {part}"
    if seen != saved.keys():
        yield f"restored {sorted(seen ^ saved.keys())} and saved not, or the other way round"


def run_with(switches, tables):
    def run(trial: Trial) -> None:
        before, after = switches[trial.index]
        found = complaints(trial, before, after, tables[trial.index % len(tables)])
        assert not found, "; ".join(found[:5])

    return run


def control_with(switches, tables):
    def control(trial: Trial) -> None:
        """Both oracles see it: other bytes behind the save, another state behind the restore."""
        before, after = switches[0]
        found = complaints(trial, before, after, tables[0], SPOIL="1")
        of_losses = [line for line in found if line.startswith("loss of step")]
        newest = max(int(p.name) for p in (trial.folder / "run" / "checkpoints").glob("[0-9]*"))
        saved = saved_arrays(trial.folder / "run" / "checkpoints" / str(newest))
        of_bytes = list(differing(saved, trial.folder / "restored", after[0]))
        if of_losses and of_bytes:
            raise AssertionError("; ".join((of_losses + of_bytes)[:5]))

    return control


HOLDS = (
    "every array that is restored has the bytes that were saved, and the losses of all steps are "
    "within 1e-4 of those of one device that was left alone"
)
ROWS = [
    Row(
        name="E1",
        fault="SIGKILL at a random step, and another number of devices goes on (8, 4, 2, 1)",
        holds=HOLDS,
        trials=len(DEVICES),
        default=0,
        run=run_with(DEVICES, (FSDP,)),
        control=control_with(DEVICES, (FSDP,)),
        others="Streaming: the order of 16 numbers of nodes, without training; MaxText: 10 % of a "
        "loss; torchtitan: the loss of step 1",
    ),
    Row(
        name="E2",
        fault="SIGKILL of all processes at a random step, and another number of them goes on "
        "(1, 2, 1; gloo)",
        holds=HOLDS,
        trials=len(PROCESSES),
        default=0,
        run=run_with(PROCESSES, (ZERO1, ZERO1, FSDP, FSDP)),
        control=control_with(PROCESSES, (ZERO1, ZERO1, FSDP, FSDP)),
        others="MaxText keeps the batch of a device; Levanter: another number of hosts is not "
        "reproducible",
    ),
]
