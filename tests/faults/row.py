"""What a row of the fault matrix is, and how many of its trials may fail unseen."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Trial:
    """One strike of a row's fault.

    Attributes:
        index: of the trial; the trial of an index is the same each time.
        folder: an empty one of its own.
        shared: a folder that all trials of the row share, for a run that was left alone.
    """

    index: int
    folder: Path
    shared: Path

    @property
    def random(self) -> random.Random:
        """Its own stream of random numbers."""
        return random.Random(self.index)


@dataclasses.dataclass(frozen=True)
class Row:
    """A kind of fault, how it is made, and what must hold after it.

    Attributes:
        name: `K1`.
        fault: what is done.
        holds: what must hold then.
        trials: how many the whole row has.
        default: how many of them, the first ones, run with the default tests; few and quick.
        run: makes a trial; an AssertionError is a failure, and says what did not hold.
        control: does what a run that does not hold would do, or spoils what `run` compares with;
            its AssertionError shows that the row can fail.
        others: what other systems promise and test here, in a few words.
        strikes: faults of one trial.
    """

    name: str
    fault: str
    holds: str
    trials: int
    default: int
    run: Callable[[Trial], None]
    control: Callable[[Trial], None]
    others: str = ""
    strikes: int = 1


def upper_bound(failures: int, trials: int, confidence: float = 0.95) -> float:
    """The one-sided upper limit of the rate of failures (Clopper and Pearson, 1934)."""
    if failures >= trials:
        return 1.0
    low, high = failures / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        at_most, term = 0.0, (1 - rate) ** trials
        for k in range(failures + 1):
            at_most += term
            term *= (trials - k) / (k + 1) * rate / max(1 - rate, 1e-300)
        low, high = (rate, high) if at_most > 1 - confidence else (low, rate)
    return high
