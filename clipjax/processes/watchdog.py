"""Ends a process that makes no progress."""

import contextlib
import faulthandler
import threading
import time
from collections.abc import Iterator
from typing import Any

from clipjax.printable import describe
from clipjax.processes import peers, process_log
from clipjax.processes.distributed import process_index
from clipjax.processes.exit_codes import HUNG
from clipjax.processes.leaving import end_process

_STDERR = process_log.STDERR  # the descriptor: whoever hangs may hold the lock of the stream
_MAX_S = 1e9  # what no clock holds would end the watching thread, not the run
_PAUSE_S = 5.0  # at most, between two looks


class Watchdog:
    """Ends a process that makes no progress: a stuck collective raises nothing by itself.

    Without `beat()` for the time that its phase may take, all thread stacks go to standard error
    and the process exits with `HUNG`. Use as a context manager; one at a time.

    Args:
        timeout_s: seconds that the slowest piece of work may take, up to 1e9; None watches nothing.
        phase: what is done, for the message.

    Raises:
        ValueError: another value.
    """

    def __init__(self, timeout_s: float | None, phase: str = "a step") -> None:
        self._limit = _checked(timeout_s), phase
        self._last = time.monotonic()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        self._watch_from_now()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Says that something finished."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def phase(self, phase: str, timeout_s: float | None) -> Iterator[None]:
        """Another time for what is done inside; before and after it the clock starts anew."""
        before, self._limit = self._limit, (_checked(timeout_s), phase)
        self._watch_from_now()
        try:
            yield
        finally:
            self.beat()
            self._limit = before

    def _watch_from_now(self) -> None:
        self.beat()
        if self._thread is None and self._limit[0] is not None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        pause_s = 0.0
        while not self._closed.wait(pause_s):
            timeout_s, phase = self._limit
            if timeout_s is None:
                faulthandler.cancel_dump_traceback_later()
                pause_s = _PAUSE_S
                continue
            pause_s = min(timeout_s / 8, _PAUSE_S)
            # This thread needs the interpreter's lock; a hang that holds the lock is ended by
            # faulthandler's own thread, which does not (its exit code is FAILED).
            faulthandler.dump_traceback_later(2 * timeout_s + 30, exit=True, file=_STDERR)
            if time.monotonic() - self._last > timeout_s:
                self.give_up(f"no progress for {timeout_s:g} s in {phase}")

    def give_up(self, reason: str) -> None:
        """Writes the stacks of all threads and ends the process."""
        process_log.keep(process_index())
        stacks = process_log.where() or "; stacks follow"
        process_log.say(f"clipjax: {reason}, exit {HUNG}{stacks}")
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        peers.warn(HUNG, reason)
        end_process(HUNG)


class Closing:
    """Ends a process whose parts do not close, as where storage hangs that is still written to.

    `begin` and `end` are exits for an ExitStack, pushed behind and before the parts.

    Args:
        timeout_s: seconds that all of them may take, up to 1e9; None watches nothing.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._dog: Watchdog | None = None

    def begin(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Watches from here on, and keeps the error that would be said after the closing."""
        said = "" if error is None else f", which ended with: {describe(error)}"
        self._dog = Watchdog(self._timeout_s, f"closing the run{said}").__enter__()

    def end(self, *exc_info: object) -> None:
        """Watches no more."""
        if self._dog is not None:
            self._dog.__exit__(*exc_info)


def _checked(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not 0 < timeout_s <= _MAX_S:
        raise ValueError(
            f"watchdog timeout of {timeout_s} s: give a positive number up to 1e9, or None"
        )
    return timeout_s
