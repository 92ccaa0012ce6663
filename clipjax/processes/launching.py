"""What launchers do: start the processes of a run, and start it again or show it to a person.

    python -m clipjax.processes.launching local [--dry_run] N [VERB] [--flag=value ...]
    python -m clipjax.processes.launching judge --code=255 [--signalled] -- FLAGS OF TRAIN

`judge` is for launchers that start the processes by other means, where the workdir can be seen. It
prints the exit code of the run and exits with 0 if the run is to be started again.

Which codes are started again, exit_codes.py says; what happened, `exit.json` and the codes of the
processes. A run is not started again when its launcher was told to stop, nor more than
CLIPJAX_RESTARTS times (5) without a newer checkpoint. The standard library is enough.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.files import write_file
from clipjax.processes import exit_record
from clipjax.processes.exit_codes import FAILED, OK, PREEMPTED, cause, ending

RESTARTS = "CLIPJAX_RESTARTS"
TALLY = "restarts.json"
_RESTARTS = 5
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_USAGE = (
    "usage: bash launch/local.sh [--dry_run] N [VERB] [--flag=value ...], "
    "VERB is train unless given"
)


class Verdict(NamedTuple):
    """What a launcher does after a run ended.

    Attributes:
        again: whether to start it again.
        code: the run's exit code.
        why: a sentence.
    """

    again: bool
    code: int
    why: str


def judge(
    codes: Sequence[tuple[int, int]],
    workdir: Path | None,
    *,
    launch: str,
    signalled: bool = False,
    restarts: int = _RESTARTS,
    fallback: int = FAILED,
) -> Verdict:
    """Decides whether a run is started again.

    Args:
        codes: numbers and exit codes of all processes, in the order in which they ended; empty
            where the launcher does not see them.
        workdir: of the run; None for a command that has none.
        launch: `LAUNCHER/START`, as the processes were told by CLIPJAX_LAUNCH.
        signalled: whether the launcher was told to stop.
        restarts: how often in a row it may be started again without a newer checkpoint.
        fallback: the code where nobody says one.
    """
    record = (exit_record.read(workdir) if workdir else None) or {}
    if record.get("launch") != launch:
        record = {}  # of an earlier start, or of another launcher's
    said = record.get("code")
    if not codes and record.get("state") == exit_record.RUNNING:
        if _is_alive(record):
            return Verdict(False, fallback, f"process {record['pid']} of the run still goes on")
        codes = [(0, 128 + signal.SIGKILL)]  # it ended without a word
    if isinstance(said, int):  # the lead may have been aborted after it had said how it ended
        codes = [(i, said if i == 0 else code) for i, code in codes] or [(0, said)]
    code = cause([code for _, code in codes]) if codes else fallback
    first = next((number for number, found in codes if found == code), 0)
    by = f" by process {first}" if len(codes) > 1 else ""
    reason = f": {record['reason']}" if record.get("reason") and said == code else ""
    ended = f"the run ended with {code}{by}, {ending(code).meaning}{reason}"
    if said == OK or workdir is None or restarts == 0 or not ending(code).again:
        return Verdict(False, code, ended)
    if signalled:
        return Verdict(False, code, f"{ended}; the launcher was told to stop")
    saved, count = _tally(workdir, launch)
    since = "before a first checkpoint" if saved < 0 else f"since the checkpoint of step {saved}"
    if count > restarts:
        why = f"{ended}; given up after {restarts} restarts {since} ({RESTARTS} says how many)"
        return Verdict(False, code, why)
    return Verdict(True, code, f"{ended}; starting again, restart {count} {since}")


def _is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the process of a record is one of this host that goes on."""
    if record.get("host") != socket.gethostname() or not isinstance(record.get("pid"), int):
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _tally(workdir: Path, launch: str) -> tuple[int, int]:
    """Counts a restart; the newest checkpoint's step, and the restarts since there is one."""
    launcher, _, start = launch.rpartition("/")
    saved = newest_step(workdir)
    path = workdir / TALLY
    try:
        before = json.loads(path.read_bytes())
        same = before["launcher"] == launcher and before["saved_step"] == saved
        count = int(before["count"]) + 1 if same else 1
    except (OSError, ValueError, KeyError, TypeError):
        count = 1
    tally = {"launcher": launcher, "saved_step": saved, "count": count}
    try:
        write_file(path, json.dumps(tally) + "\n")
    except OSError:  # no workdir yet, or a full disk: every start of this launcher counts
        count = max(count, int(start) + 1) if start.isdecimal() else count
    return saved, count


def newest_step(workdir: Path) -> int:
    """The step of the newest checkpoint; -1 where there is none."""
    manifests = (workdir / "checkpoints").glob("*/manifest.json")
    steps = [int(path.parent.name) for path in manifests if path.parent.name.isdecimal()]
    return max(steps, default=-1)


def workdir_of(flags: Sequence[str]) -> Path | None:
    """The --workdir among the flags of `clipjax train`."""
    found = None
    for number, flag in enumerate(flags):
        name, _, value = flag.partition("=")
        if name in ("--workdir", "-workdir"):
            found = value if "=" in flag else next(iter(flags[number + 1 : number + 2]), None)
    return Path(found).expanduser() if found else None


class Local:
    """N processes of this machine, joined as the hosts of a pod would be; or one by itself.

    Args:
        num_processes: how many.
        command: of each.
        joined: whether they find one another.
    """

    def __init__(self, num_processes: int, command: list[str], *, joined: bool = True) -> None:
        self.num_processes, self.command, self._joined = num_processes, command, joined
        self.signalled = False
        self._running: dict[int, int] = {}  # by process id, the number of the process in the run

    def run(self, launch: str) -> list[tuple[int, int]]:
        """Runs all to their ends; number and exit code of each, in the order in which they ended.

        None is started any more once this process was told to stop: it would never hear of it.

        What asks this process to stop, each of them is asked once: they have process groups of
        their own, so that Ctrl-C in a terminal does not come to them twice.
        """
        for number, variables in enumerate(self.variables()):
            environment = {**os.environ, **variables, exit_record.LAUNCH: launch}
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until it is one of ours
            try:
                if self.signalled:
                    break
                pid = os.posix_spawnp(
                    self.command[0],
                    self.command,
                    environment,
                    setpgroup=0,
                    setsigmask=mask,
                    setsigdef=[signal.SIGPIPE],  # Python ignores it
                )
                self._running[pid] = number
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        ended: list[tuple[int, int]] = []
        stopped: set[int] = set()
        while self._running:
            pid, status = os.waitpid(-1, os.WUNTRACED | os.WCONTINUED)
            stopped.discard(pid)
            if os.WIFSTOPPED(status):
                stopped.add(pid)
            elif pid in self._running and not os.WIFCONTINUED(status):
                code = os.waitstatus_to_exitcode(status)
                ended.append((self._running.pop(pid), code if code >= 0 else 128 - code))
            # The others have given it up; it would end as it goes on, which may be never.
            if any(code != OK for _, code in ended):
                for lost in stopped & self._running.keys():
                    _say(f"process {self._running[lost]} is stopped, and the others ended: killed")
                    os.kill(lost, signal.SIGKILL)
                stopped.clear()
        return ended

    def variables(self) -> list[dict[str, str]]:
        """What the environment of each has, so that they find one another."""
        if not self._joined:
            return [{} for _ in range(self.num_processes)]
        cluster = {
            "CLIPJAX_COORDINATOR": f"127.0.0.1:{os.environ.get('CLIPJAX_PORT') or _free_port()}",
            "CLIPJAX_NUM_PROCESSES": str(self.num_processes),
        }
        return [{**cluster, "CLIPJAX_PROCESS_ID": str(n)} for n in range(self.num_processes)]

    def pass_on(self, number: int, frame: Any) -> None:
        """Passes a signal on to the processes that still run."""
        self.signalled = True
        for pid in list(self._running):
            with contextlib.suppress(ProcessLookupError):  # it ended this moment
                os.kill(pid, number)


def local(arguments: Sequence[str]) -> int:
    """Runs launch/local.sh; returns its exit code."""
    dry_run = list(arguments[:1]) == ["--dry_run"]
    arguments = arguments[dry_run:]
    if not arguments or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        print(_USAGE, file=sys.stderr)
        return 2
    count, flags = int(arguments[0]), list(arguments[1:])
    verb = flags.pop(0) if flags and flags[0].isalpha() else "train"
    command = [*shlex.split(os.environ.get("CLIPJAX_COMMAND", "clipjax")), verb, *flags]
    workdir = workdir_of(flags) if verb == "train" else None
    if dry_run:
        for variables in Local(count, command).variables():
            words = [*(f"{name}={value}" for name, value in variables.items()), *command]
            print(shlex.join(words))
        return OK
    return supervise(Local(count, command), workdir)


def supervise(processes: Local, workdir: Path | None) -> int:
    """Runs processes to their ends, and starts them again as `judge` says.

    Args:
        processes: what asks this process to stop meanwhile is passed on to them.
        workdir: of their run; None for what is not started again.

    Returns:
        The exit code of the run; 127 where its command cannot be started.
    """
    before = {number: signal.getsignal(number) for number in _STOPS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, processes.pass_on)
    try:
        return _supervise(processes, workdir)
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it was not Python's
                signal.signal(number, handler)


def _supervise(processes: Local, workdir: Path | None) -> int:
    launcher, start = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}", 0
    code = PREEMPTED
    while True:
        try:
            ended = processes.run(f"{launcher}/{start}")
        except OSError as error:
            _say(f"{processes.command[0]} cannot be started: {error.strerror}")
            return 127
        if not ended:  # told to stop before any was started
            return code
        verdict = judge(
            ended,
            workdir,
            launch=f"{launcher}/{start}",
            signalled=processes.signalled,
            restarts=_limit(os.environ),
        )
        code = verdict.code
        if verdict.code != OK:
            _say(verdict.why)
        if not verdict.again or processes.signalled:
            return verdict.code
        start += 1


def _judged(arguments: Sequence[str]) -> int:
    """Runs `judge` for a launch script; exits with 0 to start again."""
    parser = argparse.ArgumentParser(prog="python -m clipjax.processes.launching judge")
    parser.add_argument("--code", type=int, required=True, help="where the run has said none")
    parser.add_argument("--launch", default=os.environ.get(exit_record.LAUNCH, ""))
    parser.add_argument("--signalled", action="store_true", help="the launcher was told to stop")
    parser.add_argument("flags", nargs="*", help="of clipjax train, behind --")
    options = parser.parse_args(arguments)
    verdict = judge(
        [],
        workdir_of(options.flags),
        launch=options.launch,
        signalled=options.signalled,
        restarts=_limit(os.environ),
        fallback=options.code,
    )
    _say(verdict.why)
    print(verdict.code)
    return 0 if verdict.again else 1


def _limit(environment: Mapping[str, str]) -> int:
    text = environment.get(RESTARTS) or str(_RESTARTS)
    if not text.isdecimal():
        _say(f"{RESTARTS}={text!r}: expected a whole number, 0 or more; the run is not restarted")
        return 0
    return int(text)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _say(text: str) -> None:
    print(f"clipjax launcher: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command of a launch script."""
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    commands = {"local": local, "judge": _judged}
    if verb not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    return commands[verb](rest)


if __name__ == "__main__":
    sys.exit(main())
