"""When the devices have nothing to do."""

import queue
import threading
import time

import jax


class DeviceClock:
    """Tells how long the devices were idle, without making the caller wait for them.

    Computations are dispatched ahead of the devices, so the time that a loop waits for data is no
    loss as long as they still compute. A thread waits for the results and notes when they come.
    """

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[jax.Array | None] = queue.SimpleQueue()
        self._num_given = 0
        self._finished = (0, time.monotonic())  # computations, and when the last of them was
        # A daemon: a device that never answers does not keep the process from ending.
        threading.Thread(target=self._watch, name="clipjax-device-clock", daemon=True).start()

    def give(self, output: jax.Array) -> None:
        """Notes a computation that was dispatched, by one of its results, which is not donated."""
        self._num_given += 1
        self._given.put(output)

    def idle_s(self, begin: float, end: float) -> float:
        """Seconds between two times of `time.monotonic` in which all that was given was finished.

        Args:
            begin: not before the last `give`.
            end: not after now.
        """
        finished, since = self._finished
        if finished < self._num_given:
            return 0.0
        return max(0.0, end - max(begin, since))

    def close(self) -> None:
        """Ends the thread once everything given is finished; does not wait for that."""
        self._given.put(None)

    def _watch(self) -> None:
        while (output := self._given.get()) is not None:
            try:
                output.block_until_ready()
            except jax.errors.JaxRuntimeError:
                return  # the caller meets the same error
            self._finished = (self._finished[0] + 1, time.monotonic())
