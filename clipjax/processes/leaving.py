"""Ending a process at once, whatever its threads do; what it holds is given back first."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

_WAIT_S = 3.0  # that all of it may take: a process that hangs in its storage still has to end
_held: list[Callable[[], None]] = []


@contextlib.contextmanager
def giving_back(give_back: Callable[[], None]) -> Iterator[None]:
    """Has something called where the process is ended inside, in a thread."""
    _held.append(give_back)
    try:
        yield
    finally:
        _held.remove(give_back)


def end_process(code: int) -> NoReturn:
    """Ends the process with an exit code; from any thread."""

    def give_all_back() -> None:
        for give_back in reversed(_held):
            with contextlib.suppress(Exception):
                give_back()

    thread = threading.Thread(target=give_all_back, daemon=True)
    thread.start()
    thread.join(_WAIT_S)
    os._exit(code)
