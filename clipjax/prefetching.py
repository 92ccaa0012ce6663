"""Batches that are made while others are used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Cancellable(Protocol):
    """Work that was begun, such as a future."""

    def cancel(self) -> Any:
        """Gives it up, if it does not run yet."""


Work = TypeVar("Work", bound=Cancellable)


def begun_ahead(
    begin: Callable[[Item], Work], items: Iterable[Item], *, ahead: int
) -> Generator[Work, None, None]:
    """Begins with the work on each item before it is asked for; gives it in the items' order.

    Args:
        begin: item -> its work, which goes on elsewhere.
        items: possibly without end.
        ahead: works begun beyond the one that is given; what was begun and is not given is
            cancelled when the iterator is closed.
    """
    waiting: deque[Work] = deque()
    try:
        for item in items:
            waiting.append(begin(item))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for work in waiting:
            work.cancel()


def prefetched(
    make: Callable[[Item], Made], items: Iterable[Item], *, ahead: int = 2, threads: int = 1
) -> Iterator[Made]:
    """Makes items in threads, up to `ahead` beyond the one in use; gives them in order.

    Args:
        make: item -> what is given; an error is raised where its result would be given.
        items: what to make.
        ahead: how many are made ahead.
        threads: that make them.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetching")
    try:
        for work in begun_ahead(lambda item: pool.submit(make, item), items, ahead=ahead):
            yield work.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
