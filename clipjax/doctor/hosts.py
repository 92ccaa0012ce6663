"""What the processes of a run have to have in common: code, clock, workdir."""

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import clipjax
from clipjax.doctor.findings import BAD, NOTE, OK, Finding
from clipjax.doctor.store import scratch
from clipjax.files import sha256
from clipjax.processes import distributed

# Requests to a bucket are refused where a clock is 15 minutes wrong; logs of hosts that are a
# minute apart cannot be read side by side.
_BAD_SKEW_S, _NOTED_SKEW_S = 60.0, 2.0
_ROUNDS = 5
_VISIBLE_S = 10.0


def code_sha256(root: Path = Path(clipjax.__file__).parent) -> str:
    """SHA-256 of the code in a folder, the package's."""
    files = sorted(root.rglob("*.py"))
    return sha256(*(part for f in files for part in (str(f.relative_to(root)), f.read_bytes())))


def agreement(told: Sequence[Mapping[str, str]]) -> Finding:
    """Compares what has to be the same in all processes.

    Args:
        told: of each process, texts by name.
    """
    names = sorted({name for values in told for name in values})
    wrong = []
    for name in names:
        others = [n for n, values in enumerate(told) if values.get(name) != told[0].get(name)]
        if others:
            theirs = told[others[0]].get(name)
            wrong.append(
                f"processes {_few(others)} differ from process 0 in the {name}: "
                f"{_short(theirs)} and {_short(told[0].get(name))}"
            )
    if wrong:
        remedy = "start all of them with the same code, environment, config and data"
        return Finding("agreement", BAD, "; ".join(wrong), remedy)
    if len(told) == 1:
        return Finding("agreement", OK, "one process, which agrees with itself")
    text = f"{len(told)} processes agree on code, versions, devices, config and data"
    return Finding("agreement", OK, text)


def _few(numbers: Sequence[int]) -> str:
    return f"{list(numbers[:8])}{f' and {len(numbers) - 8} more' if len(numbers) > 8 else ''}"


def _short(text: str | None) -> str:
    return "nothing" if not text else text[:12] if len(text) == 64 else text[:80]


def clock() -> Finding:
    """Compares the clocks of all processes, to a few hundredths of a second; a collective."""
    rounds = []
    for _ in range(_ROUNDS):
        distributed.gather(None)  # all leave it at about the same time
        rounds.append(distributed.gather(time.time()))
    apart = [min((times[n] - times[0] for times in rounds), key=abs) for n in range(len(rounds[0]))]
    return clock_finding(apart)


def clock_finding(apart: Sequence[float]) -> Finding:
    """Judges how far clocks are from that of process 0.

    Args:
        apart: seconds, of each process.
    """
    if len(apart) == 1:
        return Finding("clock", OK, f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}")
    worst = max(range(len(apart)), key=lambda n: abs(apart[n]))
    skew = abs(apart[worst])
    found = f"the clocks of {len(apart)} processes are within {skew:.2f} s"
    if skew <= _NOTED_SKEW_S:
        return Finding("clock", OK, found)
    found = f"the clock of process {worst} is {apart[worst]:+.1f} s from that of process 0"
    if skew <= _BAD_SKEW_S:
        return Finding("clock", NOTE, found)
    remedy = "have all hosts take the time from a server: chronyd, or timedatectl set-ntp true"
    return Finding("clock", BAD, found, remedy)


def shared_workdir(workdir: Path) -> Finding | None:
    """Has all processes read what the lead writes into the store of the workdir; a collective."""
    with ExitStack() as stack:
        told = None
        if distributed.is_lead():
            try:
                file = stack.enter_context(scratch(workdir)) / "token"
                file.write_text(socket.gethostname(), encoding="utf-8")
                told = str(file)
            except OSError:
                pass  # that the lead cannot write, `store` says
        told = distributed.gather(told)[0]
        is_seen = told is None or _appears(Path(told))
        distributed.gather(None)  # before the lead deletes it
    if told is None:
        return None
    if is_seen:
        return Finding("shared", OK, "all processes see what process 0 writes into the workdir")
    return Finding(
        "shared",
        BAD,
        f"{workdir} of {socket.gethostname()} does not show what process 0 writes there",
        "give a workdir that all hosts mount: a file store, or a bucket by gcsfuse",
    )


def _appears(path: Path) -> bool:
    until = time.monotonic() + _VISIBLE_S
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def processes_here() -> int:
    """How many processes of the run are on this host; a collective."""
    return distributed.gather(socket.gethostname()).count(socket.gethostname())
