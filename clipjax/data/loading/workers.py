"""Who makes the rows of a batch: the caller, threads, or processes."""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from clipjax.data.loading.rows import Part, RowMaker


@dataclasses.dataclass
class Pending:
    """A batch on its way: its images are whole when all parts are done."""

    step: int
    images: np.ndarray
    parts: list["concurrent.futures.Future[Part]"]

    def cancel(self) -> None:
        """Gives up the parts that no worker has begun with."""
        for part in self.parts:
            part.cancel()


class Workers:
    """What makes batches.

    Attributes:
        ahead: whether a batch is made while the caller does something else.
        wait_s: how long to wait for a part, None where it always comes to an end by itself.
    """

    ahead = True
    wait_s: float | None = None

    def submit(self, step: int, stage: int, start: int, count: int) -> Pending:
        """Begins with the rows of a step: `count` positions of the stream from `start` on."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """What happened to the workers, by name; empty if nothing did."""
        return {}

    def close(self, *, wait: bool) -> None:
        """Ends them; `wait` until they are gone, unless one is known to hang."""


def parts_of(count: int, number: int) -> Iterator[tuple[int, int]]:
    """Cuts the rows of a batch into pieces, some for each worker: `(first, last + 1)`."""
    edges = np.linspace(0, count, min(count, 4 * number or 1) + 1).astype(int).tolist()
    return itertools.pairwise(edges)


class _Caller(concurrent.futures.Executor):
    def submit(self, function: Callable, /, *args: Any, **options: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(function(*args, **options))
        return future


class Threads(Workers):
    """Threads of this process, or none: a batch is whole, then, when `submit` returns.

    Decoding and resizing give the interpreter's lock away.
    """

    def __init__(self, maker: RowMaker, number: int, timeout_s: float):
        self.maker, self._number = maker, number
        self.ahead, self.wait_s = number > 0, timeout_s
        self._pool: concurrent.futures.Executor = _Caller()
        if number:
            self._pool = concurrent.futures.ThreadPoolExecutor(number, "clipjax-loader")

    def submit(self, step: int, stage: int, start: int, count: int) -> Pending:
        """Begins with the rows of a step."""
        size = self.maker.stages[stage].preprocess.size
        # New for every batch: JAX may use its memory without copying it.
        images = np.empty((count, size, size, 3), np.uint8)
        parts = [
            self._pool.submit(self.maker.make, stage, start + low, images[low:high])
            for low, high in parts_of(count, self._number)
        ]
        return Pending(step, images, parts)

    def close(self, *, wait: bool) -> None:
        """Ends the threads; one that hangs is not waited for."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
