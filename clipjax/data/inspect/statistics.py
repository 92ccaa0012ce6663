"""What a dataset holds: sizes, captions, languages, duplicates."""

import array
import collections
import hashlib
import os
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipjax.data.captions import flatten
from clipjax.data.images.preprocess import as_pil, to_rgb
from clipjax.data.source import DataSource, SampleError, read_example
from clipjax.prefetching import prefetched

PERCENTILES = (0, 5, 50, 95, 100)
CHUNK = 64  # examples of one task
_NAMED = 5  # groups of duplicates, and keys of each


class Measured(NamedTuple):
    """What is kept of one example; `exact` are 16 bytes of its picture's SHA-256."""

    key: str
    width: int
    height: int
    num_bytes: int
    captions: list[tuple[str, str]]
    exact: bytes
    look: int


def measure(
    source: DataSource, indices: np.ndarray, *, workers: int | None = None
) -> Iterator[list[Measured | SampleError]]:
    """Reads and decodes examples in threads, giving them in order, some at a time."""

    def work(chunk: np.ndarray) -> list[Measured | SampleError]:
        return [_measure(source, int(index)) for index in chunk]

    workers = workers or os.cpu_count() or 1
    chunks = (indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK))
    return prefetched(work, chunks, ahead=2 * workers, threads=workers)


def _measure(source: DataSource, index: int) -> Measured | SampleError:
    try:
        example = read_example(source, index)
        image = to_rgb(as_pil(example["image"]))
    except SampleError as error:
        return error
    data = example["image"] if isinstance(example["image"], bytes) else np.asarray(image).tobytes()
    return Measured(
        key=example["key"],
        width=image.width,
        height=image.height,
        num_bytes=len(data),
        captions=list(flatten(example["text"])),
        exact=hashlib.sha256(data).digest()[:16],
        look=difference_hash(image),
    )


def difference_hash(image: Image.Image) -> int:
    """64 bits that a picture keeps when it is resized or encoded anew.

    Bit i says whether a pixel of the grey 9 x 8 reduction is brighter than its right neighbour.
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    bits = (small[:, :-1] > small[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def summarise(found: Iterator[list[Measured | SampleError]]) -> dict[str, Any]:
    """Counts what was measured.

    Returns:
        JSON-able: `examples` and `unusable` by reason; `width`, `height`, `bytes`,
        `captions_per_image`, `words`, `characters`, each at PERCENTILES; `languages`;
        `duplicates`: how many pictures are there twice or more, byte for byte and by look, and
        the first keys of the largest groups.
    """
    unusable: collections.Counter[str] = collections.Counter()
    languages: collections.Counter[str] = collections.Counter()
    # Arrays of numbers, as there may be ten million of each.
    names = ("width", "height", "bytes", "captions_per_image", "words", "characters")
    columns = {name: array.array("q") for name in names}
    exact, by_look = _Groups(), _Groups()
    for item in (item for chunk in found for item in chunk):
        if isinstance(item, SampleError):
            unusable[item.reason] += 1
            continue
        sizes = (item.width, item.height, item.num_bytes, len(item.captions))
        for name, size in zip(names, sizes, strict=False):
            columns[name].append(size)
        for language, text in item.captions:
            languages[language] += 1
            columns["words"].append(len(text.split()))
            columns["characters"].append(len(text))
        exact.add(item.exact, item.key)
        by_look.add(item.look, item.key)
    return {
        "examples": len(columns["width"]),
        "unusable": dict(sorted(unusable.items())),
        **{name: _percentiles(column) for name, column in columns.items()},
        "languages": dict(sorted(languages.items())),
        "duplicates": {"byte for byte": exact.told(), "by look": by_look.told()},
    }


class _Groups:
    """Which pictures are the same: of each its first key, of the others their number, too."""

    def __init__(self) -> None:
        self._first: dict[Hashable, str] = {}
        self._keys: dict[Hashable, list[str]] = {}
        self._sizes: collections.Counter[Hashable] = collections.Counter()

    def add(self, name: Hashable, key: str) -> None:
        if name not in self._first:
            self._first[name] = key
            return
        keys = self._keys.setdefault(name, [self._first[name]])
        if len(keys) < _NAMED:
            keys.append(key)
        self._sizes[name] = self._sizes.get(name, 1) + 1

    def told(self) -> dict[str, Any]:
        return {
            "groups": len(self._sizes),
            "superfluous": self._sizes.total() - len(self._sizes),
            "largest": [self._keys[name] for name, _ in self._sizes.most_common(_NAMED)],
        }


def _percentiles(values: array.array) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, PERCENTILES, method="nearest")
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}
