"""Rows M: one of two processes is killed, stopped, differs from the other, or fails."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipjax.processes.exit_codes import FAILED, PEER_LOST
from clipjax.processes.process_log import FOLDER
from tests.faults.row import Row, Trial

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "helpers"))
from xla_flags import COUNT, QUICK, with_flags  # noqa: E402  no package

CONFIG = "tests/faults/two_processes.py"
STEPS = 12
LOST_S, TOLD_S = 60, 30  # a lost process ends the other within, one that fails does
STARTS_S = 400  # far beyond what a start takes on a machine with much else to do
SAVES = ("before_copy", "mid_write", "before_manifest", "before_rename", "before_delete")


class Ended(NamedTuple):
    """How a process ended, what its terminal showed, and when (of `time.monotonic`)."""

    code: int
    shown: str
    at: float


class Two:
    """`clipjax` in two processes; use as a context manager, which leaves none behind.

    Args:
        folder: for what they show.
        workdir: of the run.
        flags: of both.
        own: more flags, and variables, of one of them.
        config: of both.
        count: of processes, where it is not two.
        prefix: of the command.
        verb: with its arguments, where it is not `train` of the config into the workdir.
    """

    def __init__(
        self,
        trial: Trial,
        workdir: Path,
        flags: Sequence[str] = (),
        own: Mapping[int, tuple[Sequence[str], Mapping[str, str]]] | None = None,
        *,
        config: str = CONFIG,
        count: int = 2,
        prefix: Sequence[str] = (),
        verb: Sequence[str] | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.files, self.processes = [], []
        for number in range(count):
            more, variables = (own or {}).get(number, ((), {}))
            joined = {
                "CLIPJAX_COORDINATOR": f"127.0.0.1:{port}",
                "CLIPJAX_NUM_PROCESSES": f"{count}",
                "CLIPJAX_PROCESS_ID": str(number),
            }
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": with_flags(f"{COUNT}=1", *QUICK),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "JAX_COMPILATION_CACHE_DIR": str(trial.shared / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                "PYTHONPATH": str(ROOT),
                **(joined if count > 1 else {}),
                **variables,
            }
            verb = verb or ("train", f"--config={config}", f"--workdir={workdir}")
            command = [*prefix, sys.executable, "-m", "clipjax", *verb, *flags, *more]
            file = trial.folder / f"{workdir.name}_{time.monotonic_ns()}_{number}.txt"
            self.files.append(file)
            with file.open("wb") as stream:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=stream, stderr=stream
                    )
                )

    def __enter__(self) -> "Two":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def shown(self, number: int) -> str:
        return self.files[number].read_text(errors="replace")

    def wait(self, number: int, seconds: float = STARTS_S) -> Ended:
        """Waits for the end of one."""
        try:
            code = self.processes[number].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"process {number} has not ended in {seconds} s:\n{self.shown(number)[-500:]}"
            ) from None
        return Ended(code, self.shown(number), time.monotonic())

    def wait_for_step(self, workdir: Path, step: int) -> None:
        """Waits until the metrics of a step are written."""
        end = time.monotonic() + STARTS_S
        while max(losses(workdir), default=0) < step:
            for number, process in enumerate(self.processes):
                assert process.poll() is None, self.shown(number)[-1500:]
            assert time.monotonic() < end, "the run does not come so far"
            time.sleep(0.05)


def losses(workdir: Path) -> dict[int, float]:
    """step -> loss, as written so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["loss"] for row in rows}


def digests(workdir: Path) -> dict[str, str]:
    """leaf -> SHA-256 of the final state."""
    manifest = json.loads((workdir / f"checkpoints/{STEPS}/manifest.json").read_text())
    return {leaf["name"]: leaf["sha256"] for leaf in manifest["leaves"]}


def undisturbed(trial: Trial) -> Path:
    """A run of two processes that nothing disturbs; the trials of a row share it."""
    workdir = trial.shared / "undisturbed"
    if not (trial.shared / "done").exists():
        shutil.rmtree(workdir, ignore_errors=True)
        finish(trial, workdir)
        (trial.shared / "done").touch()
    return workdir


def finish(trial: Trial, workdir: Path) -> None:
    """Starts a run, again or for the first time, and sees it to its end."""
    with Two(trial, workdir) as two:
        for number in range(2):
            ended = two.wait(number)
            assert ended.code == 0, f"process {number}: {ended.code}\n{ended.shown[-1500:]}"


def check_shown(ended: Ended, *words: str) -> None:
    """What a terminal shows of a failure: 20 lines at most, no dump, the words in the last one."""
    lines = ended.shown.rstrip("\n").split("\n")
    logged = [n for n, line in enumerate(lines) if re.match(r"\d\d:\d\d:\d\d |step \d+/", line)]
    of_failure = lines[max(logged, default=-1) + 1 :]
    assert len(of_failure) <= 20, f"{len(of_failure)} lines:\n{ended.shown[-2000:]}"
    for dump in ("*** Check failure", "Fatal Python error", "coordination_service"):
        assert dump not in ended.shown, ended.shown[-2000:]
    for word in words:
        assert re.search(word, lines[-1]), f"no {word!r} in the last line:\n{ended.shown[-1500:]}"


def check_bitwise(trial: Trial, workdir: Path) -> None:
    """The run, started again, ends with the losses and the state of one that was left alone."""
    finish(trial, workdir)
    whole = undisturbed(trial)
    assert losses(workdir) == losses(whole), "other losses"
    assert set(losses(workdir)) == set(range(1, STEPS + 1)), "a step is missing"
    assert digests(workdir) == digests(whole), "another state"


# M1 -------------------------------------------------------------------------------------------


def fault_of(trial: Trial) -> str:
    """A step, or a point of a save, at random."""
    step = trial.random.randrange(1, STEPS)
    saved = max(3, step // 3 * 3)  # the first that deletes an old one is later than `keep`
    point = trial.random.choice(("loop.step", *(f"save.{name}" for name in SAVES[:-1])))
    return f"kill@{point}:step={step if point == 'loop.step' else saved}"


def kill(trial: Trial, *, spoil: bool = False) -> None:
    number, workdir = trial.index % 2, trial.folder / "run"
    fault = fault_of(trial)
    if number and ("manifest" in fault or "rename" in fault):
        fault = re.sub(r"save\.\w+", "save.mid_write", fault)  # those are of the lead alone
    undisturbed(trial)
    own = {number: ((), {"CLIPJAX_FAULT": fault})}
    with Two(trial, workdir, own=own) as two:
        killed = two.wait(number)
        assert killed.code == -signal.SIGKILL, f"{fault}: {killed.code}\n{killed.shown[-1500:]}"
        other = two.wait(1 - number, LOST_S)
    assert other.code == PEER_LOST, f"{fault}: {other.code}\n{other.shown[-1500:]}"
    check_shown(other, f"process {number} was lost", f"{FOLDER}/process_{1 - number}.log")
    if spoil:
        lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line.replace('"loss": ', '"loss": 1') for line in lines]
        (workdir / "metrics.jsonl").write_text("".join(kept))
    check_bitwise(trial, workdir)


def kill_control(trial: Trial) -> None:
    """The losses before the kill are other ones."""
    kill(Trial(5, trial.folder, trial.shared), spoil=True)  # which goes on from a later step


# M2 -------------------------------------------------------------------------------------------


def stop(trial: Trial, *, number_said: int | None = None) -> None:
    number, workdir = trial.index % 2, trial.folder / "run"
    step = trial.random.randrange(1, STEPS - 4)
    with Two(trial, workdir, [f"--config.total_steps={100 * STEPS}"]) as two:
        two.wait_for_step(workdir, step)
        two.processes[number].send_signal(signal.SIGSTOP)
        other = two.wait(1 - number, LOST_S)
        two.processes[number].send_signal(signal.SIGCONT)
        woken = two.wait(number, LOST_S)
    assert other.code == PEER_LOST, f"{other.code}\n{other.shown[-1500:]}"
    said = number if number_said is None else number_said
    check_shown(other, f"process {said} was lost", f"{FOLDER}/process_{1 - number}.log")
    # It finds the others gone when it goes on, and ends as well.
    assert woken.code == PEER_LOST, f"woken: {woken.code}\n{woken.shown[-1500:]}"
    check_shown(woken)


def stop_control(trial: Trial) -> None:
    """The other names the wrong process."""
    stop(Trial(1, trial.folder, trial.shared), number_said=7)


# M3 -------------------------------------------------------------------------------------------

# What one of the two is given, and the words of the message; None: the run is not disturbed.
VERSION = "import clipjax; clipjax.__version__ = '0.0.other'\n"
CLOCK = (
    "import time, os\n"
    "plain, shift = time.time, float(os.environ['SHIFT_S'])\n"
    "time.time = lambda: plain() + shift\n"
)
SKEWS = (
    (["--config.optimizer.learning_rate=0.001"], "", {}, "config"),
    (["--config.seed=1"], "", {}, "config"),
    (["--config.data.source=synthetic:256"], "", {}, "config|dataset"),
    ([], VERSION, {}, "clipjax version"),
    ([], "import jax; jax.__version__ = '0.0.other'\n", {}, "jax version"),
    (["--config.checkpoint.every_steps=5"], "", {}, "config"),
    (["--config.total_steps=13"], "", {}, "config"),
    (["--config.distributed.end_timeout_s=17"], "", {}, "config"),
    ([], CLOCK, {"SHIFT_S": "3600"}, None),
    ([], CLOCK, {"SHIFT_S": "-3600"}, None),
)


def skew(trial: Trial, *, told: bool = True) -> None:
    number, (flags, code, variables, words) = trial.index % 2, SKEWS[trial.index // 2]
    workdir = trial.folder / "run"
    if code:
        (trial.folder / "sitecustomize.py").write_text(code)
        variables = {**variables, "PYTHONPATH": f"{trial.folder}{os.pathsep}{ROOT}"}
    with Two(trial, workdir, own={number: (flags if told else [], variables)}) as two:
        ends = [two.wait(n) for n in range(2)]
    if words is None:
        assert [ended.code for ended in ends] == [0, 0], ends[0].shown[-1500:]
        whole = undisturbed(trial)
        assert losses(workdir) == losses(whole) and digests(workdir) == digests(whole)
        return
    assert {ended.code for ended in ends} <= {FAILED, PEER_LOST}, ends[0].shown[-1500:]
    assert FAILED in {ended.code for ended in ends}
    for ended in ends:
        check_shown(ended, rf"processes \[1\] differ from process 0 in their ({words})")
    assert abs(ends[0].at - ends[1].at) <= TOLD_S
    assert not losses(workdir), "it trained"


def skew_control(trial: Trial) -> None:
    """Both have the same config, and train."""
    skew(Trial(0, trial.folder, trial.shared), told=False)


# M4 -------------------------------------------------------------------------------------------

# Where one of the two fails: a function that raises in place of the real one, or an injected fault.
PATCH = (
    "import {module} as module\n"
    "def fail(*args, **options):\n"
    "    raise {error}\n"
    "module.{target} = fail\n"
)
FAILURES = (
    ("clipjax.experiment.run", "make_source", "OSError(5, 'Input/output error')", FAILED),
    ("clipjax.train", "fitting_program", "RuntimeError('in its plan')", FAILED),
    ("clipjax.train", "find_start", "MemoryError('of the host')", FAILED),
    ("clipjax.train", "global_batch", "KeyboardInterrupt()", 130),
    (None, "raise@loop.step:step=5", "InjectedFault", FAILED),
)


def fail(trial: Trial, *, number_said: int | None = None) -> None:
    number, (module, target, error, code) = trial.index % 2, FAILURES[trial.index // 2]
    workdir, variables = trial.folder / "run", {"CLIPJAX_FAULT": target}
    if module is not None:
        text = PATCH.format(module=module, target=target, error=error)
        (trial.folder / "sitecustomize.py").write_text(text)
        variables = {"PYTHONPATH": f"{trial.folder}{os.pathsep}{ROOT}"}
    with Two(trial, workdir, own={number: ((), variables)}) as two:
        failed = two.wait(number)
        other = two.wait(1 - number, TOLD_S)
    assert failed.code == code, f"{failed.code}\n{failed.shown[-1500:]}"
    check_shown(failed)
    assert other.code == PEER_LOST, f"{other.code}\n{other.shown[-1500:]}"
    said = number if number_said is None else number_said
    words = re.findall(r"'(.*)'|$", error)[0] or error.partition("(")[0]
    check_shown(other, f"process {said} failed: .*{words}", f"{FOLDER}/process_{1 - number}.log")
    log = (workdir / FOLDER / f"process_{number}.log").read_text()
    assert "Traceback" in log and error.partition("(")[0] in log, log[-1000:]


def fail_control(trial: Trial) -> None:
    """The other names the wrong process."""
    fail(Trial(8, trial.folder, trial.shared), number_said=7)


ROWS = [
    Row(
        name="M1",
        fault="SIGKILL of one of two processes at a step or inside a save",
        holds="the other ends within 60 s with 83 and names it; started again, the run is bitwise "
        "that of two processes left alone",
        trials=20,
        default=0,
        run=kill,
        control=kill_control,
        others="torchft: threads in place of processes",
    ),
    Row(
        name="M2",
        fault="SIGSTOP of one of two processes",
        holds="the other ends within 60 s with 83 and names it; the stopped one, woken, ends too",
        trials=20,
        default=0,
        run=stop,
        control=stop_control,
        others="axlearn: a watchdog",
    ),
    Row(
        name="M3",
        fault="one of two processes has another config, data, version or number of steps, or a "
        "clock that is an hour off",
        holds="both end before the first step and name what differs; the clock changes nothing",
        trials=2 * len(SKEWS),
        default=0,
        run=skew,
        control=skew_control,
        others="Levanter: the lead's decision to save is broadcast",
    ),
    Row(
        name="M4",
        fault="an exception in one of two processes: data, plan, restore, batch, step",
        holds="the other ends within 30 s with 83 and says which failed and why; at most 20 lines "
        "on each terminal, the traceback in the log",
        trials=2 * len(FAILURES),
        default=1,
        run=fail,
        control=fail_control,
    ),
]
