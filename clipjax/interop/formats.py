"""The formats that weights come in and go out in."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from clipjax.interop.weights import Hints, Weights


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of weights.

    Attributes:
        recognises: whether a file or directory is of this format; cheap, raises nothing.
        read: reads it; nothing but names, shapes and small files is read before a tensor is asked
            for. Raises WeightFileError or ValueError.
        write: writes to a path that does not exist yet; None for a format that is read only.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path, Hints], Weights]
    write: Callable[[Path, Weights], None] | None = None


FORMATS: dict[str, Format] = {}
