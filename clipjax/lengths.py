"""How long: in steps, or as a text in steps, examples or epochs, `12.8e9 examples`, `3 epochs`.

A config holds lengths as they are written; `validate` turns each into steps, once, and all that
follows knows steps alone.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from clipjax.ranges import FieldError, Rule, show, whole

_LENGTH = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?)\s+([a-z]+)\s*")
_UNITS = ("step", "example", "epoch")


@dataclasses.dataclass(frozen=True)
class Length(Rule):
    """A whole number of steps from `low`, or a text with its unit."""

    low: int = 0

    def _accepts(self, value: Any) -> bool:
        return whole(self.low).accepts(value) or (isinstance(value, str) and bool(_parse(value)))

    def __str__(self) -> str:
        return f"{whole(self.low)} (steps), or a text in examples or epochs, `3 epochs`"

    def steps(
        self,
        value: int | str,
        path: str,
        *,
        batch_size: int,
        count_examples: Callable[[], int],
        after: tuple[int, int] = (0, 0),
    ) -> int:
        """The steps of a length, rounded up.

        Args:
            value: that `check` accepts.
            path: where it stands, for messages.
            batch_size: examples a step.
            count_examples: counts those of an epoch; called for a length in epochs only.
            after: steps of the length that have another batch size, and the examples they hold.

        Raises:
            ValueError: the examples cannot be counted, or the steps are out of range.
        """
        parsed = _parse(value) if isinstance(value, str) else None
        if parsed is None:
            return int(value)
        number, unit = parsed
        if unit == "epoch":
            try:
                number *= count_examples()
            except ValueError as error:
                raise FieldError(f"{path} = {show(value)}: {error}") from error
        steps = math.ceil(number)
        if unit != "step":
            steps = after[0] + math.ceil((number - after[1]) / batch_size)
        if not whole(self.low).accepts(steps):
            raise FieldError(
                f"{path} = {show(value)} is {show(steps)} steps: expected {whole(self.low)}"
            )
        return steps


def is_in_steps(value: int | str) -> bool:
    """Whether a length says its steps, and so depends on no batch size."""
    parsed = _parse(value) if isinstance(value, str) else None
    return parsed is None or parsed[1] == "step"


def _parse(text: str) -> tuple[Fraction, str] | None:
    """The number and the unit, without its plural; None if it is no length."""
    match = _LENGTH.fullmatch(text)
    unit = match[2].removesuffix("s") if match else ""
    if match is None or unit not in _UNITS:
        return None
    return Fraction(match[1].replace("_", "")), unit
