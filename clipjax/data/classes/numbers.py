"""Classes that are called by whole numbers: these are their labels, whatever order they come in."""

from collections import Counter
from collections.abc import Sequence


class LabelError(ValueError):
    """The labels of a source do not fit the names of its classes: no fault of one example, so it
    is no SampleError, which is replaced or counted."""


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """Reads names of classes as whole numbers (`7`, `007`); None unless all of them are.

    Raises:
        ValueError: if two are the same number, as `1` and `01` are.
    """
    if not names or not all(name.isascii() and name.isdecimal() for name in names):
        return None
    numbers = [int(name) for name in names]
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        same = [name for name in names if int(name) == twice[0]]
        raise ValueError(
            f"the classes {' and '.join(same)} are the same number: rename all but one"
        )
    return numbers


def labels_of_numbers(
    numbers: Sequence[int], count: int, first_label: int | None, where: str
) -> list[int]:
    """Gives the labels of classes that are called by numbers, as places among the names.

    Args:
        first_label: the number of the first name; None takes 0, and then each name has to have
            its class: numbers that count from 1 would otherwise get the names of their neighbours.

    Returns:
        `number - first_label` of each.

    Raises:
        ValueError: if a number has no name, or it is not certain which is the first one's.
    """
    least, largest, first = min(numbers), max(numbers), first_label or 0
    found = f"{where} calls its classes by numbers from {least} to {largest}"
    if first_label is None and least == 1 and largest == count:
        raise ValueError(
            f"{found}, and there are {count} names, for 0 to {count - 1}: if the first name is "
            "that of 1, write ?first_label=1 in the SPEC"
        )
    if least < first or largest >= first + count:
        raise ValueError(
            f"{found}; {count} names are for {first} to {first + count - 1}: give a name for each "
            "number, or the number of the first name by ?first_label=N in the SPEC"
        )
    if first_label is None and len(numbers) < count:
        absent = min(set(range(count)) - set(numbers))
        raise ValueError(
            f"{found}, {len(numbers)} in all, e.g. none is {absent}; there are {count} names: give "
            "those of these classes alone, or, if the numbers are places among the names, write "
            "?first_label=0 in the SPEC"
        )
    return [number - first for number in numbers]


def refuse_shifted(label: int | None, count: int, first_label: int | None, key: str) -> None:
    """Refuses a label that is one too large: where classes count from 1, all names are shifted."""
    if label == count and first_label is None:
        raise LabelError(
            f"{key}: the class is {label:,}, and {count:,} names are for 0 to {count - 1:,}: if "
            "the first class is 1, write ?first_label=1 in the SPEC, else ?first_label=0"
        )
