"""A strict reader of tar headers: a damaged archive is an error, never a shorter dataset."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_REGULAR = (b"0", b"\0")
_PAX, _GNU_NAME, _DIRECTORY = b"x", b"L", b"5"


class Member(NamedTuple):
    """One regular file of an archive: name, and where its bytes stand."""

    name: str
    offset: int
    size: int


def read_members(file: BinaryIO, where: str) -> Iterator[Member]:
    """Lists the files of a tar archive, reading headers only.

    Every header's checksum has to be right, every file whole, and the archive has to end in two
    blocks of zeros: `tarfile` takes a damaged header for the end and says nothing.

    Args:
        file: opened in binary mode, seekable.
        where: the archive's name, for messages.

    Raises:
        ValueError: if the archive is damaged or cut short, or holds links, devices or names
            that point outside it.
    """
    end, position, long_name = file.seek(0, 2), 0, None
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if header == _ZEROS:
            if file.read(BLOCK) != _ZEROS:
                raise ValueError(f"{where} ends at byte {position} with one block of zeros, not 2")
            return
        size = _checked_size(header, where, position)
        kind, start = header[156:157], position + BLOCK
        position = start + -(-size // BLOCK) * BLOCK
        if position > end:
            raise ValueError(f"{where} is cut short: a file at byte {start} needs {size} bytes")
        if kind in (_PAX, _GNU_NAME):
            file.seek(start)
            long_name = _long_name(kind, file.read(size), where) or long_name
            continue
        name, long_name = long_name or _name(header), None
        if kind in _REGULAR:
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"{where} holds {name!r}, a name that points outside it")
            yield Member(name, start, size)
        elif kind != _DIRECTORY:
            raise ValueError(f"{where} holds {name!r} of type {kind!r}: only files are read")


def _checked_size(header: bytes, where: str, position: int) -> int:
    if len(header) < BLOCK:
        raise ValueError(f"{where} is cut short at byte {position}: its end marker is missing")
    expected = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    try:
        found, size = _number(header[148:156]), _number(header[124:136])
    except ValueError as error:
        raise ValueError(f"{where} is damaged: its header at byte {position} is unreadable") from (
            error
        )
    if found != expected:
        raise ValueError(f"{where} is damaged: the checksum of its header at byte {position}")
    return size


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: big-endian binary, for files above 8 GiB
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0").decode("ascii") or "0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", errors="replace")


def _long_name(kind: bytes, content: bytes, where: str) -> str | None:
    if kind == _GNU_NAME:
        return content.rstrip(b"\0").decode("utf-8", errors="replace")
    name = None
    while content:
        length, found, _ = content.partition(b" ")
        if not found or not length.isdigit() or not 0 < int(length) <= len(content):
            raise ValueError(f"{where} is damaged: an extended header is unreadable")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", errors="replace")
        elif key == b"size":
            raise ValueError(f"{where} holds an extended size, which is not read")
        content = content[int(length) :]
    return name
