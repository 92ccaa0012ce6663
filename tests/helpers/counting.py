"""Work that a test may bound: what is counted is the same on a quick and on a busy machine."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

# A guard against waiting for ever, far above what any machine takes. No test is to measure by it.
HANGS_S = 600.0


class Counter:
    """How much was counted so far."""

    number = 0


@contextlib.contextmanager
def counted_calls() -> Iterator[Counter]:
    """Counts the calls of Python and C functions that this thread makes inside."""
    counter = Counter()

    def profile(frame, event, arg):
        if event in ("call", "c_call"):
            counter.number += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield counter
    finally:
        sys.setprofile(before)


def wait_until(condition: Callable[[], object]) -> None:
    """Returns once the condition holds, however long that takes.

    Raises:
        AssertionError: it never comes to hold.
    """
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < HANGS_S, "it never came to hold"
        time.sleep(0.002)
