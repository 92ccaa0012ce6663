"""Failing on purpose and stopping in order: injection points, exit codes, signals, the watchdog.

`CLIPJAX_FAULT="kill@save.before_manifest:step=37"` makes the process kill itself at that point of
step 37. Tests use it to prove that a run survives; unset, a point costs one look at the
environment.
"""

import faulthandler
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import jax
from absl import logging

# Exit codes of `clipjax train`. A supervisor starts a run again on PREEMPTED and HUNG, and shows
# FAILED and NUMERIC to a person.
OK = 0
FAILED = 1
PREEMPTED = 80  # SIGTERM or SIGUSR1 came; the current step is saved
NUMERIC = 81  # too many non-finite steps, or a state that is not finite
HUNG = 82  # the watchdog saw no finished step in time

_STDERR = 2  # the descriptor: whoever hangs may hold the lock of the stream

FAULT = "CLIPJAX_FAULT"
ACTIONS = ("kill", "raise", "hang", "term")

_fired: set[str] = set()


class InjectedFault(RuntimeError):
    """What `raise@...` raises."""


def parse_fault(text: str) -> tuple[str, str, int | None]:
    """Splits `action@point[:step=N]`.

    Raises:
        ValueError: the text has another form, or names an unknown action.
    """
    action, at, where = text.partition("@")
    point_name, _, condition = where.partition(":")
    key, _, number = condition.partition("=")
    known = action in ACTIONS and bool(at and point_name)
    if not known or (condition and (key != "step" or not number.isdecimal())):
        raise ValueError(
            f"{FAULT}={text!r}: expected action@point[:step=N], with an action of "
            f"{', '.join(ACTIONS)}"
        )
    return action, point_name, int(number) if condition else None


def point(name: str, step: int | None = None) -> None:
    """Marks a place where a fault can be injected; each fault strikes once a process.

    Raises:
        InjectedFault: if `CLIPJAX_FAULT` says `raise` here.
        ValueError: `CLIPJAX_FAULT` has another form than `parse_fault` reads.
    """
    text = os.environ.get(FAULT)
    if not text or text in _fired:
        return
    action, wanted_name, wanted_step = parse_fault(text)
    if name != wanted_name or wanted_step not in (None, step):
        return
    _fired.add(text)
    logging.warning("injected fault: %s", text)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif action == "raise":
        raise InjectedFault(text)
    while action == "hang":
        time.sleep(60)


class PreemptionGuard:
    """Turns SIGTERM, SIGUSR1 and Ctrl-C into a flag that the loop reads between two steps.

    A second SIGTERM or Ctrl-C ends the process at once. In a run of several processes the signal
    may come to one of them only, so the stop is agreed through JAX's preemption sync point: JAX's
    own SIGTERM handler then stays in place (it takes no notice of a second one) and the other
    signals are passed on to it.

    Use as a context manager around the loop; it restores the handlers that it replaced.
    """

    def __init__(self) -> None:
        self._requested = False
        self._shared = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "PreemptionGuard":
        handler = self._pass_on if self._shared else self._request
        for number in (signal.SIGUSR1, signal.SIGINT, *(() if self._shared else (signal.SIGTERM,))):
            self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number != signal.SIGUSR1:
            os._exit(128 + number)
        self._requested = True

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(self, step: int) -> bool:
        """Whether to save and stop after `step` finished steps; the same answer in every process.

        Args:
            step: the same number in every process, and every number once: the agreed step is found
                by counting, so a process that skips a call would run past it.
        """
        if not self._shared:
            return self._requested
        from jax.experimental import multihost_utils

        return bool(multihost_utils.reached_preemption_sync_point(step))


class Watchdog:
    """Ends a process that makes no progress: a stuck collective raises nothing by itself.

    Without `beat()` for `timeout_s`, all thread stacks go to standard error and the process exits
    with `HUNG`. Use as a context manager around the loop.

    Args:
        timeout_s: seconds that the slowest step, evaluation or compilation may take, up to 1e9;
            None watches nothing.

    Raises:
        ValueError: another value; what no clock holds would end the watching thread, not the run.
    """

    def __init__(self, timeout_s: float | None) -> None:
        if timeout_s is not None and not 0 < timeout_s <= 1e9:
            raise ValueError(
                f"watchdog timeout of {timeout_s} s: give a positive number up to 1e9, or None"
            )
        self.timeout_s = timeout_s
        self._last = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(timeout_s,), name="watchdog", daemon=True
        )

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self.timeout_s is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        if self.timeout_s is None:
            return
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Says that something finished."""
        self._last = time.monotonic()

    def _watch(self, timeout_s: float) -> None:
        pause_s = min(timeout_s / 8, 5.0)
        while not self._closed.wait(pause_s):
            # This thread needs the interpreter's lock; a hang that holds the lock is ended by
            # faulthandler's own thread, which does not (its exit code is FAILED).
            faulthandler.dump_traceback_later(2 * timeout_s + 30, exit=True, file=_STDERR)
            if time.monotonic() - self._last > timeout_s:
                self._give_up()

    def _give_up(self) -> None:
        text = f"clipjax: no progress for {self.timeout_s:g} s; stacks follow, then exit {HUNG}\n"
        os.write(_STDERR, text.encode())
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        os._exit(HUNG)
