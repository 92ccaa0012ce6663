"""Rows of requests that wait at the same time go through the device together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from clipjax.serving.limits import Limits, busy

Row = TypeVar("Row")


class _Work(NamedTuple):
    rows: Sequence[Any]
    answer: Future[Any]
    since: float  # of time.monotonic()


class Batcher(Generic[Row]):
    """A queue before a function of many rows, and a thread that runs it.

    A batch is run when it is full, or when the first of it has waited long enough. The rows of one
    request stay together; those whose request was given up are left out.

    Args:
        run: n rows -> n results, which can be sliced.
        limits: `batch_rows`, `batch_wait_s` and `waiting_rows`.
        max_rows: of a batch, in place of `batch_rows`; a larger request is a batch of its own.
    """

    def __init__(
        self, run: Callable[[list[Row]], Any], limits: Limits, *, max_rows: int | None = None
    ) -> None:
        self._run, self._limits = run, limits
        self._max_rows = max_rows or limits.batch_rows
        self._waiting: deque[_Work] = deque()
        self._num_rows = 0  # that wait
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> Future[Any]:
        """Has rows run; the results of them, in their order.

        Raises:
            RefusedError: more rows would wait than are allowed.
        """
        answer: Future[Any] = Future()
        with self._changed:
            if self._closed or self._num_rows + len(rows) > self._limits.waiting_rows:
                raise busy()
            self._waiting.append(_Work(rows, answer, time.monotonic()))
            self._num_rows += len(rows)
            self._changed.notify()
        return answer

    def close(self) -> None:
        """Ends the thread, once what waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if not batch:
                continue
            try:
                results = self._run([row for work in batch for row in work.rows])
            except BaseException as error:  # whoever waits has to hear of any
                for work in batch:
                    work.answer.set_exception(error)
                continue
            start = 0
            for work in batch:
                work.answer.set_result(results[start : start + len(work.rows)])
                start += len(work.rows)

    def _next(self) -> list[_Work] | None:
        """The next batch, without what was given up; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            due = self._waiting[0].since + self._limits.batch_wait_s
            self._changed.wait_for(
                lambda: self._num_rows >= self._max_rows or self._closed,
                timeout=max(0.0, due - time.monotonic()),
            )
            batch: list[_Work] = []
            taken = 0
            while self._waiting:
                size = len(self._waiting[0].rows)
                if batch and taken + size > self._max_rows:
                    break
                work = self._waiting.popleft()
                self._num_rows -= size
                if work.answer.set_running_or_notify_cancel():
                    batch.append(work)
                    taken += size
            return batch
