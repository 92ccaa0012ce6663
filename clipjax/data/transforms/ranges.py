"""Checks of what a transform is given, so that a config fails before the first step."""

from collections.abc import Sequence
from typing import Any


def check_probability(owner: Any, *names: str) -> None:
    """Raises ValueError unless the named fields lie in 0..1."""
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{type(owner).__name__}.{name} is {value}, expected 0..1")


def check_range(owner: Any, *names: str, low: float = 0.0, high: float = float("inf")) -> None:
    """Raises ValueError unless the named fields are pairs `low <= a <= b <= high`."""
    for name in names:
        value = getattr(owner, name)
        if (
            not isinstance(value, Sequence)
            or len(value) != 2
            or not low <= value[0] <= value[1] <= high
        ):
            raise ValueError(
                f"{type(owner).__name__}.{name} is {value}, expected (a, b) with "
                f"{low} <= a <= b <= {high}"
            )


def check_not_negative(owner: Any, *names: str) -> None:
    """Raises ValueError unless the named fields are at least 0."""
    for name in names:
        value = getattr(owner, name)
        if value < 0:
            raise ValueError(f"{type(owner).__name__}.{name} is {value}, expected 0 or more")
