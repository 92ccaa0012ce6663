"""A column with the classes of a table's rows."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from clipjax.data.classes.matching import labels_of_names, plain_name
from clipjax.data.classes.numbers import refuse_shifted
from clipjax.data.source import SampleError
from clipjax.data.sources.fields import whole_text

NUMBERS = 10**9  # labels lie below it
_NUMBER = re.compile(r"\s*[-+]?\d{1,9}\s*")  # no class has a number of ten digits


class LabelColumn:
    """Names the classes of a column, and reads its cells.

    Args:
        given: names of the classes, in the order of the labels; None where none are given.
        own: gives the names that the column itself has, None where it holds numbers alone.
    """

    def __init__(
        self,
        given: Sequence[str] | None,
        own: Callable[[], Sequence[str] | None],
        first_label: int | None,
    ):
        names = given or own()
        self.names = None if names is None else tuple(names)
        self._are_given, self._first_label = given is not None, first_label
        self._places = labels_of_names(self.names or ())

    def read(self, value: Any, key: str) -> tuple[int, str]:
        """Gives the label that a cell means, that of the class of its name, else its number.

        Returns:
            The label, and the name of the class; empty where nothing names it.

        Raises:
            SampleError: `label`, if it is no class.
            LabelError: if it is one too large, as where classes count from 1.
        """
        label, count = None, NUMBERS if self.names is None else len(self.names)
        if isinstance(value, str):
            label = self._places.get(whole_text(value), self._places.get(plain_name(value)))
        if label is None and _is_class(value):
            label = number_of(value)
            label = None if label is None else label - (self._first_label or 0)
        if label is None or not 0 <= label < count:
            refuse_shifted(label, count, self._first_label, key)
            raise SampleError("label", f"the class is {value!r:.40} of {count:,}", key)
        return label, "" if self.names is None else self.names[label]

    def matched_by(self, values: Iterable[Any]) -> str | None:
        """Says how cells find the names that are given, as `read` does.

        Returns:
            One of MATCHED, the least sure of those that some cell needs; None where no names are
            given.
        """
        if not self._are_given or self.names is None:
            return None
        plain = {plain_name(name) for name in self.names}
        cells = {value for value in values if _is_class(value)}
        texts = {v for v in cells if isinstance(v, str) and plain_name(v) in self._places}
        if texts < cells:
            return "number"
        return "name" if all(plain_name(value) in plain for value in texts) else "wordnet"


def class_names_of(values: Iterable[Any], field: str, where: str) -> tuple[str, ...] | None:
    """Names the classes of a column, in alphabetical order; None where all are numbers, which an
    evaluation has to name.
    """
    found = {value for value in values if _is_class(value)}
    if not found:
        raise ValueError(f"{where} has no class in {field!r}: a class is a text or a whole number")
    if all(number_of(value) is not None for value in found):
        return None
    return tuple(sorted({whole_text(str(value)) for value in found}))


def refuse_without_label(where: str, **options: Any) -> None:
    """Refuses options about the classes of a source that reads no label."""
    for name, value in options.items():
        if value is not None:
            found = value if isinstance(value, int) else f"{','.join(value)[:40]}"
            raise ValueError(
                f"{where}: {name}={found} is of no use without label_field: name the column that "
                "holds the classes by ?label_field=NAME in the SPEC, or leave it out"
            )


def _is_class(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def number_of(value: str | int) -> int | None:
    """Reads a cell as a whole number; None if it is none."""
    if isinstance(value, int):
        return value
    return int(value) if _NUMBER.fullmatch(value) else None
