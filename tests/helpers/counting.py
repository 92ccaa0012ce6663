"""Work that a test may bound: what is counted is the same on a quick and on a busy machine."""

import contextlib
import sys
from collections.abc import Iterator


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
