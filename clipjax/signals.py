"""Signals that ask a run to stop become a flag that the loop reads between two steps."""

import os
import signal
from types import FrameType
from typing import Any

import jax


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
