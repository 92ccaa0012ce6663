"""The grid of a sweep: fields and their values, and a name for each combination."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from clipjax.files import sha256

_CLOSING = {")": "(", "]": "[", "}": "{"}
_LONGEST_NAME = 120  # of a folder; file systems allow 255 bytes


@dataclasses.dataclass(frozen=True)
class Axis:
    """A field of a config, and the values that it takes, as they are written."""

    path: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Point:
    """A combination of values: field -> value, as they are written."""

    values: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The name of its folder: the fields and values, with a hash where they do not fit."""
        text = "__".join(f"{path}={value}" for path, value in self.values)
        plain = re.sub(r"[^\w.=+-]", "-", text)[:_LONGEST_NAME]
        return plain if plain == text else f"{plain}-{sha256(text)[:8]}"

    @property
    def overrides(self) -> list[str]:
        """Flags of `clipjax train`."""
        return [f"--config.{path}={value}" for path, value in self.values]


def parse_axis(text: str) -> Axis:
    """Reads `optimizer.learning_rate=1e-3,2e-3`; a comma in brackets or quotes parts no values.

    Raises:
        ValueError: what is missing, or stands twice.
    """
    path, equals, values = text.partition("=")
    path = path.strip().removeprefix("--").removeprefix("config.")
    if not path or not equals:
        raise ValueError(
            f"--grid {text!r}: expected FIELD=VALUE,VALUE, as optimizer.learning_rate=1e-3,2e-3"
        )
    found = _split(values, text)
    if "" in found:
        raise ValueError(f"--grid {text!r}: a value is empty")
    if len(set(found)) < len(found):
        raise ValueError(f"--grid {text!r}: a value stands twice")
    return Axis(path, tuple(found))


def _split(values: str, text: str) -> list[str]:
    parts, open_, quote = [""], [], ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _CLOSING.values():
            open_.append(character)
        elif character in _CLOSING:
            if not open_ or open_.pop() != _CLOSING[character]:
                raise ValueError(f"--grid {text!r}: a bracket is closed that was not opened")
        elif character == "," and not open_:
            parts.append("")
            continue
        parts[-1] += character
    if open_ or quote:
        raise ValueError(f"--grid {text!r}: {(open_ or [quote])[-1]} is not closed")
    return [part.strip() for part in parts]


def points(axes: Sequence[Axis]) -> list[Point]:
    """All combinations, the last axis first.

    Raises:
        ValueError: there is no axis, or a field has two.
    """
    paths = [axis.path for axis in axes]
    if not axes:
        raise ValueError("--grid is missing: --grid optimizer.learning_rate=1e-3,2e-3")
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"--grid {twice[0]} is given twice; give its values in one")
    product = itertools.product(*(axis.values for axis in axes))
    return [Point(tuple(zip(paths, values, strict=True))) for values in product]
