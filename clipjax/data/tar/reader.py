"""A strict reader of tar archives: a damaged one is an error, never a shorter dataset."""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

BLOCK = 512
MAX_MEMBERS = 1_000_000
MAX_MEMBER_BYTES = 64 << 20
MAX_NAME_BYTES = 255
PIECE = 1 << 20  # bytes of a member's content that are held at a time
_ZEROS = bytes(BLOCK)
REGULAR, _DIRECTORY = (b"0", b"\0"), b"5"
_PAX, _GNU_NAME = b"x", b"L"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")


class Reader(Protocol):
    """Where an archive comes from."""

    def read(self, size: int, /) -> bytes:
        """Reads so many bytes, fewer only at the end."""


class Member(NamedTuple):
    """One regular file of an archive: name, where its bytes stand, and their CRC-32.

    `content` holds the bytes themselves where they are at most 1 MiB.
    """

    name: str
    offset: int
    size: int
    crc: int
    content: bytes | None = None


def read_members(file: Reader, where: str) -> Iterator[Member]:
    """Lists the files of a tar archive, reading it once from its start to its end.

    Every header's checksum has to be right, every file whole, the archive has to end in two
    blocks of zeros, and nothing but zeros may follow: `tarfile` takes a damaged header for the
    end and says nothing.

    Raises:
        ValueError: if the archive is damaged or cut short, or holds links, devices, or names
            that point outside it, are not UTF-8, or are too long.
    """
    archive, count = _Archive(file, where), 0
    long_name: bytes | None = None
    while (header := archive.header()) is not None:
        size, kind, start = archive.size_of(header), header[156:157], archive.position
        if size > MAX_MEMBER_BYTES:
            raise ValueError(
                f"{where} holds a member of {size} bytes at byte {start}; allowed are "
                f"{MAX_MEMBER_BYTES}"
            )
        if kind in (_PAX, _GNU_NAME):
            content = archive.content(size)
            long_name = _long_name(kind, content, where) or long_name
            continue
        raw = long_name or _name(header)
        long_name = None
        crc, held = archive.crc_of(size)
        if kind == _DIRECTORY or (kind == b"\0" and raw.endswith(b"/")):
            continue
        name = checked_name(raw, where, start)
        if kind not in REGULAR:
            raise ValueError(f"{where} holds {name!r} of type {kind!r}: only files are read")
        count += 1
        if count > MAX_MEMBERS:
            raise ValueError(f"{where} holds more than {MAX_MEMBERS} files: split it")
        yield Member(name, start, size, crc, held)
    if long_name is not None:
        raise ValueError(f"{where} is damaged: its last long name belongs to no file")
    archive.check_end()


class _Archive:
    """Reads blocks in order, and knows where it stands."""

    def __init__(self, file: Reader, where: str):
        self._file, self.where, self.position = file, where, 0

    def header(self) -> bytes | None:
        """The next header; None at the end marker."""
        block = self._read(BLOCK)
        if block == _ZEROS:
            if self._read(BLOCK) != _ZEROS:
                raise ValueError(
                    f"{self.where} ends at byte {self.position} with one block of zeros, not 2"
                )
            return None
        if block[:2] == b"\x1f\x8b" and self.position == len(block):
            raise ValueError(f"{self.where} is compressed: unpack it with gunzip")
        if len(block) < BLOCK:
            raise ValueError(
                f"{self.where} is cut short at byte {self.position}: its end marker is missing"
            )
        return block

    def size_of(self, header: bytes) -> int:
        """The size of a header's file; the header's checksum has to be right."""
        at = self.position - BLOCK
        expected = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
        if _number(header[148:156]) != expected:
            raise ValueError(f"{self.where} is damaged: the checksum of its header at byte {at}")
        size = _number(header[124:136])
        if size is None:
            raise ValueError(f"{self.where} is damaged: its header at byte {at} has no size")
        return size

    def content(self, size: int) -> bytes:
        """Reads a file, and the padding that fills its last block."""
        padded = -(-size // BLOCK) * BLOCK
        content = self._read(padded)
        if len(content) != padded:
            self._cut(size)
        return content[:size]

    def crc_of(self, size: int) -> tuple[int, bytes | None]:
        """Reads over a file and its padding; gives its CRC-32 and, if it is small, its bytes."""
        crc, left, piece = 0, size, b""
        while left > 0:
            piece = self._read(min(left, PIECE))
            if not piece:
                self._cut(size)
            crc, left = zlib.crc32(piece, crc), left - len(piece)
        padding = -size % BLOCK
        if padding and len(self._read(padding)) != padding:
            self._cut(size)
        return crc, piece if len(piece) == size else None

    def check_end(self) -> None:
        """What follows the end marker may be zeros only."""
        while piece := self._read(PIECE):
            if piece.strip(b"\0"):
                raise ValueError(
                    f"{self.where} goes on after its end marker: is it several archives in one?"
                )

    def _read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.position += len(block)
        return block

    def _cut(self, size: int) -> None:
        raise ValueError(
            f"{self.where} is cut short at byte {self.position}, inside a file of {size} bytes"
        )


def _number(field: bytes) -> int | None:
    if field[0] == 0x80:  # GNU: big-endian binary, for files above 8 GiB
        return int.from_bytes(field[1:], "big")
    digits = _OCTAL.fullmatch(field)
    return int(digits[1] or b"0", 8) if digits else None


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def checked_name(raw: bytes, where: str, start: int) -> str:
    """Gives a member's name, where it is one that a shard may hold."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} holds a name that is not UTF-8: {raw!r}") from error
    if not name or "\0" in name or len(raw) > MAX_NAME_BYTES:
        raise ValueError(
            f"{where} holds a file at byte {start} whose name is empty, has a NUL, or is longer "
            f"than {MAX_NAME_BYTES} bytes: {name[:80]!r}"
        )
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{where} holds {name!r}, a name that points outside it")
    return name


def _long_name(kind: bytes, content: bytes, where: str) -> bytes | None:
    if kind == _GNU_NAME:
        return content.rstrip(b"\0")
    name = None
    while content:
        length, found, _ = content.partition(b" ")
        if not found or not length.isdigit() or not 0 < int(length) <= len(content):
            raise ValueError(f"{where} is damaged: an extended header is unreadable")
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise ValueError(f"{where} is damaged: an extended header is unreadable")
        if key == b"path":
            name = value
        elif key == b"size":
            raise ValueError(f"{where} holds an extended size, which is not read")
    return name
