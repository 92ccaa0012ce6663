"""Ends a process that makes no progress."""

import faulthandler
import os
import threading
import time

from clipjax.exit_codes import HUNG

_STDERR = 2  # the descriptor: whoever hangs may hold the lock of the stream


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
                self.give_up()

    def give_up(self) -> None:
        """Writes the stacks of all threads and ends the process."""
        text = f"clipjax: no progress for {self.timeout_s:g} s; stacks follow, then exit {HUNG}\n"
        os.write(_STDERR, text.encode())
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        os._exit(HUNG)
