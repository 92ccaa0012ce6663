"""Where the wall time of a run goes: steps that count, and what took the rest.

`goodput.json` in the workdir holds the seconds by cause, of all starts of the run together, and
those of its evaluations at intervals. Time between two starts, in which no process was there, is
not counted.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import logging

from clipjax.files import write_file
from clipjax.processes.distributed import is_lead

NAME = "goodput.json"
STEPS = "steps"
# What takes time beside the steps: up to the first step of the first start; of a later one, and
# steps that were done before; the rest as they say.
CAUSES = ("start", "restart", "compile", "data", "evaluation", "checkpoint")
_SAVE_S = 30.0  # between two writes of the file, so that a killed process loses no more


class Goodput:
    """The clock of a run by cause; a process that is not the lead keeps its own and writes nothing.

    Args:
        workdir: of the run.
        check_owner: called before each write into it.

    Attributes:
        evaluations: seconds of evaluations at intervals, in all and of the last time, by name; for
            `EvalBudget`, which changes them.
    """

    def __init__(self, workdir: Path, check_owner: Callable[[], None] = lambda: None) -> None:
        self._path, self._check_owner = workdir / NAME, check_owner
        before = read(workdir)
        self._seconds = dict.fromkeys((STEPS, *CAUSES), 0.0) | before.get("seconds", {})
        self.evaluations: dict[str, tuple[float, float]] = before.get("evaluations", {})
        self._starts = int(before.get("starts", 0)) + 1
        self._reached = int(before.get("step", 0))  # of an earlier start; steps up to it come again
        self._step = 0
        self._cause = "start" if self._starts == 1 else "restart"
        self._since = time.monotonic() - _process_age_s()
        self._saved = time.monotonic()

    def begin(self, step: int) -> None:
        """Says how many steps are finished, before the first of this start."""
        self._step = step

    def at(self, step: int) -> None:
        """Says that a step was given to the devices: from now on, steps take the time."""
        self._step = step
        self._pass_to(STEPS if step > self._reached else "restart")
        self._reached = max(self._reached, step)

    @contextmanager
    def spending(self, cause: str) -> Iterator[None]:
        """Counts the time inside, in which no step runs, as a cause's."""
        before = self._cause
        self._pass_to(cause)
        try:
            yield
        finally:
            self._pass_to(before)

    def move(self, cause: str, seconds: float) -> None:
        """Counts time of now as a cause's, that is found only afterwards."""
        self._seconds[cause] += seconds
        self._seconds[self._cause] -= seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by cause, with those of the steps, of all starts."""
        self._pass_to(self._cause)
        return dict(self._seconds)

    def age_s(self) -> float:
        """Seconds that the run is old, over all starts."""
        return sum(self.seconds().values())

    def metrics(self) -> dict[str, float]:
        """`goodput`, the share of the steps, and the seconds of each cause."""
        seconds = self.seconds()
        named = {f"time_s/{cause}": value for cause, value in seconds.items()}
        return {"goodput": share(seconds), **named}

    def save(self, *, now: bool = True) -> None:
        """Writes the file; not `now`, only where the last time is a while ago."""
        if not is_lead() or (not now and time.monotonic() - self._saved < _SAVE_S):
            return
        self._saved = time.monotonic()
        self._check_owner()
        content = {"starts": self._starts, "step": self._reached, "seconds": self.seconds()}
        content["evaluations"] = self.evaluations
        try:
            write_file(self._path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            logging.warning("%s was not written: %s", self._path, error)

    def _pass_to(self, cause: str) -> None:
        now = time.monotonic()
        self._seconds[self._cause] += now - self._since
        self._cause, self._since = cause, now


def read(workdir: Path) -> dict[str, Any]:
    """What stands in the file: `starts`, `step`, `seconds`, `evaluations`; {} if none is read."""
    try:
        found = json.loads((workdir / NAME).read_bytes())
        seconds = {cause: float(found["seconds"][cause]) for cause in (STEPS, *CAUSES)}
        evaluations = {  # of a run from before there were any: none
            str(name): (float(taken), float(last))
            for name, (taken, last) in found.get("evaluations", {}).items()
        }
        counts = {name: int(found[name]) for name in ("starts", "step")}
        return {**counts, "seconds": seconds, "evaluations": evaluations}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def share(seconds: dict[str, float]) -> float:
    """The share of the steps in all of the time."""
    return seconds[STEPS] / max(sum(seconds.values()), 1e-9)


def describe(found: dict[str, Any]) -> str:
    """The time of a run in words, the largest part first.

    Args:
        found: of `read`.
    """
    seconds = found["seconds"]
    whole = max(sum(seconds.values()), 1e-9)
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    words = [f"{cause} {value / whole:.1%}" for cause, value in parts if value / whole >= 0.0005]
    starts = f"{found['starts']} start{'s' if found['starts'] > 1 else ''}"
    return f"{', '.join(words)} of {whole / 3600:.2f} h in {starts}"


def _process_age_s() -> float:
    """Seconds since this process began; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = float(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
