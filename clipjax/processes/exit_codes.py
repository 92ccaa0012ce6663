"""Exit codes of `clipjax train`: what a launcher or supervisor does next is read from them.

One table for the launch scripts (clipjax/processes/launching.py), docs/launching.md and the tests.
"""

import signal
from collections.abc import Sequence
from typing import NamedTuple

OK = 0
FAILED = 1
PREEMPTED = 80
NUMERIC = 81
HUNG = 82
PEER_LOST = 83


class Ending(NamedTuple):
    """What an exit code says.

    Attributes:
        meaning: in words.
        again: whether launchers start the run again.
    """

    meaning: str
    again: bool


ENDINGS = {
    OK: Ending("done", False),
    FAILED: Ending("failed; the last line says why", False),
    PREEMPTED: Ending("stopped on request, the step is saved", True),
    NUMERIC: Ending("too many steps, or a state, that are not finite", False),
    HUNG: Ending("no progress within `config.hang_timeout_s`", True),
    PEER_LOST: Ending(
        "another process of the run failed, was lost or stopped; the last line says which", True
    ),
}
SIGNALLED = Ending("ended by signal N without saving, as by a second Ctrl-C", True)  # 128 + N
_LAST_SIGNAL = 64


def ending(code: int) -> Ending:
    """What an exit code says; one that is not ours is a failure."""
    if code in ENDINGS:
        return ENDINGS[code]
    if not 128 < code <= 128 + _LAST_SIGNAL:
        return Ending("failed before it was a run", False)
    number = code - 128
    known = number in signal.valid_signals() and number in set(signal.Signals)
    name = signal.Signals(number).name if known else str(number)
    return SIGNALLED._replace(meaning=f"ended by {name} without saving")


def cause(codes: Sequence[int]) -> int:
    """The exit code of a run of several processes.

    Args:
        codes: theirs, in the order in which they ended.

    Returns:
        0 if all are; else the first that did not end because of another process.
    """
    failures = [code for code in codes if code != OK]
    own = [code for code in failures if code != PEER_LOST]
    return next(iter([*own, *failures]), OK)


def table() -> list[str]:
    """The rows of the table of docs/launching.md."""
    rows = [(str(code), ending) for code, ending in ENDINGS.items()] + [("128 + N", SIGNALLED)]
    return [f"| {code} | {e.meaning} | {'yes' if e.again else 'no'} |" for code, e in rows]
