"""What the fields of transforms may hold, so that a config fails before the first step."""

import dataclasses
from typing import Any

from clipjax.ranges import Number, is_list, show, whole

# Of a strength, a side or a count: what is larger was mistyped, and would overflow in the run.
LARGEST = 10**6
STRENGTH = Number(0, LARGEST)


def count(low: int = 1) -> Number:
    """A whole number from `low` that is no typing error."""
    return whole(low, LARGEST)


@dataclasses.dataclass(frozen=True)
class Span:
    """A pair of finite numbers `low <= a <= b <= high`."""

    low: float = 0
    high: float = LARGEST

    def check(self, value: Any, path: str) -> None:
        """Raises ValueError unless the value is such a pair."""
        end = Number(self.low, self.high)
        is_pair = is_list(value) and len(value) == 2 and all(map(end.accepts, value))
        if not is_pair or value[0] > value[1]:
            raise ValueError(f"{path} = {show(value)}: expected {self}")

    def __str__(self) -> str:
        return f"a pair (a, b), {self.low:g} <= a <= b <= {self.high:g}"
