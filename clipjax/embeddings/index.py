"""A folder of embeddings, opened: what `clipjax embed` wrote, checked against its `index.json`."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clipjax.data.source import DataSource
from clipjax.data.sources import make_source
from clipjax.data.storage.files import local_path
from clipjax.embeddings.shards import DTYPES, FORMS, read_columns, read_embeddings
from clipjax.strict_json import read_json

FORMAT = "clipjax.embeddings/1"
INDEX = "index.json"
_ALIGNMENT = 64  # bytes
_READ = 1 << 14  # rows at once, where some of a shard are looked for
_FEW = 1 << 10  # rows of a shard, below which copying them together costs less than a block each
_AGAIN = "the same `clipjax embed` makes what is lost anew"


class Block(NamedTuple):
    """Embeddings that stand one after the other.

    Attributes:
        first: the place of the first in the index.
        filled: how many are embeddings; the rest is padding.
        embeds: `[rows, embed]`, as stored, the same rows in each block; on a device if put there.
    """

    first: int
    filled: int
    embeds: np.ndarray | jax.Array


class Index:
    """Embeddings of a dataset, in shards on disk.

    Attributes:
        directory: of the shards.
        about: what `index.json` says.
    """

    def __init__(self, directory: Path, about: Mapping[str, Any]) -> None:
        self.directory, self.about = directory, about
        self._ends = np.cumsum([shard["pictures"] for shard in about["shards"]])

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> "Index":
        """Opens a folder.

        Raises:
            ValueError: it is none of embeddings, not finished, or a shard is not what was written.
        """
        directory = local_path(directory)
        if not (directory / INDEX).is_file():
            raise ValueError(
                f"{directory} has no {INDEX}: give the folder that `clipjax embed --out` wrote"
            )
        about = read_index(directory / INDEX)
        if not about.get("complete"):
            raise ValueError(f"{directory} is not finished: start the same `clipjax embed` again")
        for shard in about["shards"]:
            for suffix, size in shard["bytes"].items():
                path = directory / f"{shard['name']}{suffix}"
                found = path.stat().st_size if path.is_file() else None
                if found != size:
                    what = "is missing" if found is None else f"has {found} bytes"
                    raise ValueError(f"{path} {what}, {INDEX} says {size} bytes; {_AGAIN}")
        return cls(directory, about)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def embed_dim(self) -> int:
        """Length of an embedding."""
        return self.about["model"]["embed_dim"]

    def blocks(self, rows: int, *, start: int = 0) -> Iterator[Block]:
        """Gives the embeddings from `start` on in order, so many rows at a time, padded.

        Rows that stand one after the other in one file are given as they are, others are copied
        together.
        """
        dtype = self.about["stored"]["dtype"]
        block: np.ndarray | None = None
        filled, first = 0, start
        for embeds in self._parts(rows, start):
            while len(embeds):
                if not filled and len(embeds) >= rows:
                    yield Block(first, rows, embeds[:rows])
                    embeds, first = embeds[rows:], first + rows
                    continue
                if block is None:  # a device may still read the one before
                    block = aligned((rows, self.embed_dim), dtype)
                taken = min(len(embeds), rows - filled)
                block[filled : filled + taken] = embeds[:taken]
                embeds, filled = embeds[taken:], filled + taken
                if filled == rows:
                    yield Block(first, filled, block)
                    block, filled, first = None, 0, first + rows
        if filled and block is not None:
            yield Block(first, filled, block)

    def whole_rows(self, most: int) -> int:
        """Rows of a block, at most so many, that `blocks` mostly gives without a copy."""
        size = self.about["stored"]["shard_size"]
        return size if _FEW <= size < most else most

    def embeddings(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """Gives embeddings by their places in the index: `[places, embed]`, float32."""
        found = np.zeros((len(places), self.embed_dim), np.float32)
        for number, of_shard, inside in self._by_shard(places):
            first = 0
            for part in self._embeddings(self.about["shards"][number], _READ):
                here = (inside >= first) & (inside < first + len(part))
                found[of_shard[here]] = part[inside[here] - first]
                first += len(part)
        return found

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Gives whole columns: of `key`, `captions`, `row` (in the source), `width`, `height`."""
        found: dict[str, list[Any]] = {name: [] for name in names}
        for shard in self.about["shards"]:
            table = read_columns(self.directory / shard["name"], names)
            for name in names:
                found[name] += table[name].to_pylist()
        return found

    def records(self, places: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Gives `key`, `captions` and `row` of places in the index."""
        found: list[dict[str, Any]] = [{} for _ in places]
        for number, of_shard, inside in self._by_shard(places):
            stem = self.directory / self.about["shards"][number]["name"]
            rows = read_columns(stem, ["key", "captions", "row"]).take(inside).to_pylist()
            for place, row in zip(of_shard, rows, strict=True):
                found[place] = row
        return found

    def source(self, spec: str | None = None) -> DataSource:
        """Opens the dataset that was embedded.

        Args:
            spec: where it is now; by default where it was.

        Raises:
            ValueError: it is not there, or is another.
        """
        spec = spec or self.about["data"]["spec"]
        source = make_source(spec, path="--data")
        if source.fingerprint() != self.about["data"]["fingerprint"]:
            raise ValueError(
                f"{spec} is not the data that was embedded, or it has changed since; say "
                "where that is by --data SPEC, or embed it anew"
            )
        return source

    def _parts(self, rows: int, start: int) -> Iterator[np.ndarray]:
        """The embeddings from `start` on, as many at once as stand together and are wanted."""
        for shard, end in zip(self.about["shards"], self._ends.tolist(), strict=True):
            place = end - shard["pictures"]
            if end <= start:
                continue
            for part in self._embeddings(shard, rows):
                yield part[max(0, start - place) :]
                place += len(part)

    def _embeddings(self, shard: Mapping[str, Any], rows: int) -> Iterator[np.ndarray]:
        stored, shape = self.about["stored"], (shard["pictures"], self.embed_dim)
        stem = self.directory / shard["name"]
        return read_embeddings(stem, stored["form"], shape, stored["dtype"], rows=rows)

    def _by_shard(
        self, places: Sequence[int] | np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Gives (number of a shard, which of `places` are in it, their places inside)."""
        places = np.asarray(places, np.int64)
        shards = np.searchsorted(self._ends, places, side="right")
        for number in np.unique(shards).tolist():
            of_shard = np.flatnonzero(shards == number)
            start = self._ends[number] - self.about["shards"][number]["pictures"]
            yield number, of_shard, places[of_shard] - start


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Gives zeros that begin where JAX takes an array of NumPy on a CPU without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def on_device(block: Block) -> jax.Array:
    """Puts the embeddings of a block on the default device, where they must not change any more."""
    return jax.device_put(block.embeds, may_alias=True)


def shard_names(examples: int, shard_size: int) -> list[str]:
    """Names the shards of so many examples."""
    return [f"{number:05d}" for number in range(-(-examples // shard_size))]


def read_index(path: Path) -> dict[str, Any]:
    """Reads what a folder of embeddings says of itself; ValueError if it is damaged."""
    remedy = "delete the folder, and embed anew"
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, {error}: {remedy}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is no index of the format {FORMAT}: {remedy}")
    for name, fields in _FIELDS.items():
        part = found.get(name)
        for field, kind in fields.items():
            if not isinstance(part, dict) or type(part.get(field)) is not kind:
                raise ValueError(f"{path} is damaged, its {name}.{field} is missing: {remedy}")
    stored = found["stored"]
    if stored["form"] not in FORMS or stored["dtype"] not in DTYPES:
        raise ValueError(f"{path} is damaged, its stored is {stored!r:.80}: {remedy}")
    shards = found.get("shards", [])
    if found.get("complete") and not (isinstance(shards, list) and shards):
        raise ValueError(f"{path} is damaged, it names no shards: {remedy}")
    for shard in shards:
        good = isinstance(shard, dict) and isinstance(shard.get("bytes"), dict)
        # A name of anything else could lead out of the folder.
        good = good and re.fullmatch("[0-9]+", str(shard.get("name"))) is not None
        good = good and type(shard.get("pictures")) is int and shard["pictures"] >= 0
        if not good or not {*shard["bytes"]} <= {".parquet", ".npy"}:
            raise ValueError(f"{path} is damaged, a shard of it is {shard!r:.80}: {remedy}")
    return found


_FIELDS: dict[str, dict[str, type]] = {
    "model": {"name": str, "step": int, "embed_dim": int, "dtype": str, "checkpoint": str},
    "preprocess": {"pixels": str},
    "data": {"spec": str, "fingerprint": str, "examples": int},
    "stored": {"form": str, "dtype": str, "shard_size": int},
}
