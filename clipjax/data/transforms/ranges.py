"""Checks of what a transform is given, so that a config fails before the first step."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

# Of a strength, a side or a count: what is larger was mistyped, and would overflow in the run.
LARGEST = 1_000_000


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Says whether a value is a finite number `low <= value <= high`."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # an integer that no float holds
        return False


def check_probability(owner: Any, *names: str) -> None:
    """Raises ValueError unless the named fields lie in 0..1."""
    for name in names:
        _check(owner, name, is_number(getattr(owner, name), 0, 1), "a number of 0..1")


def check_range(owner: Any, *names: str, low: float = 0.0, high: float = LARGEST) -> None:
    """Raises ValueError unless the named fields are pairs of numbers `low <= a <= b <= high`."""
    for name in names:
        value = getattr(owner, name)
        is_pair = isinstance(value, Sequence) and len(value) == 2
        is_good = is_pair and all(is_number(v, low, high) for v in value) and value[0] <= value[1]
        _check(owner, name, is_good, f"(a, b) with {low} <= a <= b <= {high}")


def check_not_negative(owner: Any, *names: str, high: float = LARGEST) -> None:
    """Raises ValueError unless the named fields are numbers from 0 to `high`."""
    for name in names:
        _check(owner, name, is_number(getattr(owner, name), 0, high), f"a number of 0..{high}")


def check_whole(owner: Any, *names: str, low: int = 1) -> None:
    """Raises ValueError unless the named fields are whole numbers `low <= value <= LARGEST`."""
    for name in names:
        value = getattr(owner, name)
        is_good = isinstance(value, Integral) and is_number(value, low, LARGEST)
        _check(owner, name, is_good, f"a whole number of {low}..{LARGEST}")


def _check(owner: Any, name: str, is_good: bool, expected: str) -> None:
    if not is_good:
        found = getattr(owner, name)
        raise ValueError(f"{type(owner).__name__}.{name} is {found!r}, expected {expected}")
