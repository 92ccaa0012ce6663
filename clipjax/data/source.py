"""What a data source is, how one is named, and how it says that an example is unusable."""

import re
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from PIL import Image


class Example(TypedDict):
    """One image-text pair.

    An image is encoded bytes, or u8 `[height, width, 3 or 4]`; several texts are alternatives,
    one of which is drawn in training.
    """

    image: bytes | np.ndarray | Image.Image
    text: str | tuple[str, ...]
    key: str
    label: NotRequired[int]


@runtime_checkable
class DataSource(Protocol):
    """Random access to image-text pairs.

    `class_names` names the labels if the source has labels, else it is None. `fingerprint` is
    the SHA-256 (hex) of the source's identity: equal fingerprints mean equal examples in equal
    order, whatever the machine.
    """

    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Reads one example; `SampleError` if it is unusable."""

    def fingerprint(self) -> str:
        """SHA-256 of what the source holds."""


class SampleError(ValueError):
    """One example is unusable; the loader replaces it, and counts it under `reason`.

    Args:
        reason: short code, e.g. `empty_text`; the name under which it is counted.
        message: what is wrong.
        key: which example.
    """

    def __init__(self, reason: str, message: str, key: str = ""):
        super().__init__(message)
        self.reason, self.message, self.key = reason, message, key

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}{self.message} [{self.reason}]"


def parse_spec(spec: str) -> tuple[str, str, str | None]:
    """Splits `kind:where[:split]`.

    The split follows the last colon, unless that colon belongs to a URL or stands in brackets:
    `tfds:cifar100:train[:10%]` has the split `train[:10%]`, `arrayrecord:gs://b/x` has none.

    Returns:
        `(kind, where, split or None)`.

    Raises:
        ValueError: if it is no text, or names no kind.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise ValueError(
            f"the data source is {spec!r}, expected `kind:where[:split]`, e.g. `openmoji:train`"
        )
    kind, _, rest = spec.strip().partition(":")
    colons = [m.start() for m in re.finditer(r":(?!//)(?![^\[]*\])", rest)]
    if not colons:
        return kind, rest, None
    where, split = rest[: colons[-1]], rest[colons[-1] + 1 :]
    if not where or not split:
        raise ValueError(f"the data source {spec!r} has an empty part: `kind:where[:split]`")
    return kind, where, split


def spec_name(spec: str) -> str:
    """Turns a spec into a name for metrics: `openmoji:unseen` -> `openmoji_unseen`."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", spec).strip("_")
