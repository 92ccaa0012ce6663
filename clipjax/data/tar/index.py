"""A small index beside every tar shard: which records it holds, where, and their checksums.

`00000.tar.index` is made once by the strict reader. Opening it takes a few reads, whatever the
size of the shard. Its layout, integers little-endian:

    8 bytes           b"CJTARIX1"
    u32, u32          length and CRC-32 of the header
    header            JSON: format, count, extensions, incomplete records, and of the shard its
                      bytes, SHA-256, and SHA-256 of its first and last 64 KiB (`edges`)
    u64 [count + 1]   where record i starts and ends, counted from the end of this table
    records           each its CRC-32 (u32) and JSON: [key, {extension: [offset, size, CRC-32]}]

Equal shards give equal bytes. Nothing in it can run code.
"""

import collections
import itertools
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipjax.data.images.formats import EXTENSIONS
from clipjax.data.storage.file_reader import HashingReader
from clipjax.data.storage.files import StoredFile, read, read_all
from clipjax.data.storage.paths import DataPath
from clipjax.data.storage.retrying import TruncatedError
from clipjax.data.tar.reader import read_members
from clipjax.files import sha256
from clipjax.strict_json import parse_json

IMAGE_EXTENSIONS = EXTENSIONS
# Of these a record holds one. Masks and depth maps stand beside pictures in the other formats, and
# `?ignore=` says that they are none.
_ONE_OF = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXT_EXTENSIONS = ("txt", "json", "cls")
FORMAT = "clipjax.tar_index/1"
SUFFIXES = {"first_dot": ".index", "last_dot": ".last_dot.index"}  # by where a key ends
MAGIC = b"CJTARIX1"
EDGE = 64 << 10
_HEAD = struct.Struct("<8sII")
# Another error of the storage says nothing about the index.
_DAMAGE = (ValueError, TruncatedError, IsADirectoryError)
MAX_HEADER = 1 << 20
_BESIDE = "._"  # what macOS's tar packs beside every file: no picture, whatever it is called


class Part(NamedTuple):
    """One file of a record: where its bytes stand, and their CRC-32."""

    offset: int
    size: int
    crc: int


class Record(NamedTuple):
    """The files of a shard that share a key, by extension."""

    key: str
    parts: dict[str, Part]


def extensions_of(names: str | Sequence[str]) -> set[str]:
    """Brings extensions, as an option names them, to the form of an index: `.NPY` is `npy`."""
    names = (names,) if isinstance(names, str) else names
    return {name.lstrip(".").lower() for name in names}


class IndexDamagedError(ValueError):
    """An index is no index, or does not say what it said when it was written."""


def make_index(
    file: StoredFile,
    look: Callable[[str, str, bytes], None] | None = None,
    *,
    key_ends: str = "first_dot",
) -> bytes:
    """Reads a shard once, strictly, and gives the content of its index.

    Args:
        look: is shown key, extension and bytes of every file of at most 1 MiB.
        key_ends: at the first or the last dot of a name, a key of `SUFFIXES`.

    Raises:
        ValueError: if the shard is damaged, holds a key twice, or more extensions than kinds of
            files could have.
    """
    reader = HashingReader(file)
    records: dict[str, dict[str, Part]] = {}
    extensions: collections.Counter[str] = collections.Counter()
    hidden = 0
    for member in read_members(reader, str(file.path)):
        if member.name.rpartition("/")[2].startswith(_BESIDE):
            hidden += 1
            continue
        key, extension = split_name(member.name, key_ends)
        parts = records.setdefault(key, {})
        # A record has one picture of the usual formats, and one file of any other kind.
        images = _ONE_OF if extension in _ONE_OF else (extension,)
        if twice := next((other for other in images if other in parts), None):
            raise ValueError(
                f"{file.path} holds the key {key!r} twice: .{twice} and {member.name!r}"
            )
        parts[extension] = Part(member.offset, member.size, member.crc)
        extensions[extension] += 1
        if look is not None and member.content is not None:
            look(key, extension, member.content)
    header = {
        "format": FORMAT,
        "count": len(records),
        "extensions": dict(sorted(extensions.items())),
        "without_image": sum(p.keys().isdisjoint(IMAGE_EXTENSIONS) for p in records.values()),
        "without_text": sum(p.keys().isdisjoint(TEXT_EXTENSIONS) for p in records.values()),
        "shard": {"bytes": file.size, "sha256": reader.sha256(), "edges": edges_of(file)},
    }
    if hidden:
        header["hidden"] = hidden
    if key_ends != "first_dot":
        header["key_ends"] = key_ends
    if len(_packed_json(header)) > MAX_HEADER:
        raise ValueError(
            f"{file.path} holds {len(extensions)} extensions, e.g. {min(extensions)!r}: where keys "
            "hold dots, write ?key_ends=last_dot in the SPEC"
        )
    return pack_index(header, [_packed_json([key, parts]) for key, parts in records.items()])


def split_name(name: str, key_ends: str = "first_dot") -> tuple[str, str]:
    """Splits a member's name into key and extension, at the first or last dot of its last part."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".") if key_ends == "first_dot" else base.rpartition(".")
    if not dot:
        stem, extension = base, ""
    return folder + slash + stem, extension.lower()


def edges_of(file: StoredFile) -> str:
    """SHA-256 of the first and the last 64 KiB: a cheap look at whether a file is the same."""
    size = min(EDGE, file.size)
    return sha256(read(file.path, 0, size), read(file.path, file.size - size, size))


class TarIndex:
    """An index that is opened: the header in memory, records read one at a time.

    Args:
        path: the path of the index; local, as every record that is read costs two small reads.
        content: the index itself where it is in memory; `path` then serves messages only.
    """

    def __init__(self, path: DataPath, *, content: bytes | None = None):
        self.path, self._content = path, content
        try:
            magic, length, crc = _HEAD.unpack(self._read(0, _HEAD.size))
            if magic != MAGIC or length > MAX_HEADER:
                raise ValueError("it is of another format or version")
            packed = self._read(_HEAD.size, length)
            if zlib.crc32(packed) != crc:
                raise ValueError("the checksum of its header")
            self.header: dict[str, Any] = parse_json(packed)
            if self.header.get("format") != FORMAT:
                raise ValueError(f"its format is {self.header.get('format')!r}")
            self.count = int(self.header["count"])
            if self.count < 0 or not isinstance(self.header["shard"], dict):
                raise ValueError("its header")
            self._table = _HEAD.size + length
            self._records = self._table + 8 * (self.count + 1)
            end = struct.unpack("<Q", self._read(self._records - 8, 8))[0]
            self._bytes = self._records + end
            size = os.path.getsize(path.url) if content is None else len(content)
            if size != self._bytes:
                raise ValueError(f"it has {size} bytes, not {self._bytes}")
        except (*_DAMAGE, KeyError, TypeError, AttributeError, struct.error) as error:
            raise IndexDamagedError(
                f"the index {path} is damaged: {error}. Delete it, and it is made anew"
            ) from error

    def __len__(self) -> int:
        return self.count

    @property
    def shard(self) -> dict[str, Any]:
        """`bytes`, `sha256` and `edges` of the shard."""
        return self.header["shard"]

    def record(self, number: int) -> Record:
        """Reads where the files of a record stand."""
        ends = self._read(self._table + 8 * number, 16)
        start, end = struct.unpack("<QQ", ends)
        if not start + 4 < end <= self._bytes - self._records:
            raise self._damaged(number)
        return self._unpack(number, self._read(self._records + start, end - start))

    def __iter__(self) -> Iterator[Record]:
        content = self.content()
        ends = np.frombuffer(content, "<u8", self.count + 1, self._table).tolist()
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            yield self._unpack(number, content[self._records + start : self._records + end])

    def content(self) -> bytes:
        """Reads the whole index."""
        return read_all(self.path) if self._content is None else self._content

    def _read(self, offset: int, size: int) -> bytes:
        if self._content is None:
            return read(self.path, offset, size)
        return self._content[offset : offset + size]

    def _unpack(self, number: int, line: bytes) -> Record:
        if len(line) < 4 or struct.unpack("<I", line[:4])[0] != zlib.crc32(line[4:]):
            raise self._damaged(number)
        try:
            key, parts = json.loads(line[4:])
            record = Record(key, {name: Part(*part) for name, part in parts.items()})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(number) from error
        numbers = (number for part in record.parts.values() for number in part)
        if not isinstance(key, str) or any(type(n) is not int or n < 0 for n in numbers):
            raise self._damaged(number)
        return record

    def _damaged(self, number: int) -> IndexDamagedError:
        return IndexDamagedError(
            f"the index {self.path} is damaged at record {number}. Delete it, and it is made anew"
        )


def pack_index(header: dict[str, Any], records: list[bytes]) -> bytes:
    """Gives the bytes of an index of packed header and records, with a checksum of each."""
    packed = _packed_json(header)
    lines = [struct.pack("<I", zlib.crc32(line)) + line for line in records]
    table = np.cumsum([0, *map(len, lines)], dtype="<u8").tobytes()
    return b"".join((_HEAD.pack(MAGIC, len(packed), zlib.crc32(packed)), packed, table, *lines))


def _packed_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
