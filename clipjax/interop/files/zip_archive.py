"""A zip archive as a file of arrays: checked before anything is read, read by range.

Python's zipfile reads the table of contents; what that table says is believed only after it was
compared with the file.
"""

import stat
import struct
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from clipjax.interop.files.safetensors import read_array
from clipjax.interop.tensors import WeightFileError

MAX_MEMBERS = 200_000
MAX_RATIO = 100  # of all members' bytes to the file's
_LOCAL_HEADER = struct.Struct("<4sHHHHHLLLHH")
_ENCRYPTED = 1
_BLOCK = 2**20
# What zipfile raises for a damaged archive.
_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    RuntimeError,
    EOFError,
    OSError,
)
_MAX_GAP = 24  # a member's sizes and checksum may be repeated behind it


class ZipArchive:
    """The members of a zip archive.

    Raises:
        WeightFileError: it is damaged, or a bomb, or holds a link, a duplicate or a path outside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Stays open as long as its tensors are: the table of contents is read once.
            self._archive = zipfile.ZipFile(path)
            infos, directory = self._archive.infolist(), self._archive.start_dir
        except _ERRORS as error:
            raise WeightFileError(f"{path}: damaged zip archive ({error})") from error
        _check_members(path, infos)
        self._infos = {info.filename: info for info in infos}
        self._starts = _check_ranges(path, infos, directory)
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Names of the members."""
        return list(self._infos)

    def size(self, name: str) -> int:
        """Bytes of a member, unpacked."""
        return self._infos[name].file_size

    def is_stored(self, name: str) -> bool:
        """Whether a member's bytes lie in the file as they are."""
        return self._infos[name].compress_type == zipfile.ZIP_STORED

    def read_start(self, name: str, count: int) -> bytes:
        """Reads the first bytes of a member, fewer if it has fewer; its checksum is not checked."""
        try:
            with self._archive.open(name) as member:
                return member.read(count)
        except _ERRORS as error:
            raise self._damaged(name, error) from error

    def read(self, name: str, *, limit: int) -> bytes:
        """Reads a small member.

        Raises:
            WeightFileError: it has more bytes than `limit`, or its checksum is wrong.
        """
        if self.size(name) > limit:
            raise WeightFileError(
                f"{self.path}: member {name!r} has {self.size(name)} bytes, more than {limit}"
            )
        try:
            return self._archive.read(name)
        except _ERRORS as error:
            raise self._damaged(name, error) from error

    def read_array(
        self, name: str, dtype: np.dtype, shape: tuple[int, ...], offset: int
    ) -> np.ndarray:
        """Reads an array from inside a member; the caller has checked that it fits.

        Raises:
            WeightFileError: the member's checksum is wrong, or the file has changed.
        """
        if self.is_stored(name):
            array = read_array(self.path, dtype, shape, self._starts[name] + offset)
            if array.nbytes == self.size(name):
                self._check_sum(name, zlib.crc32(_bytes_of(array)))
            else:
                self._verify(name)
            return array
        return self._unpack_array(name, dtype, shape, offset)

    def _unpack_array(
        self, name: str, dtype: np.dtype, shape: tuple[int, ...], offset: int
    ) -> np.ndarray:
        array = np.empty(shape, dtype)
        data = _bytes_of(array)
        try:
            with self._archive.open(name) as member:
                member.seek(offset)
                done = 0
                while done < len(data):
                    block = member.read(min(_BLOCK, len(data) - done))
                    if not block:
                        raise EOFError("it ends before its array does")
                    data[done : done + len(block)] = block
                    done += len(block)
                if offset + done == self.size(name):
                    member.read(1)  # at the end, zipfile compares the checksum
        except _ERRORS as error:
            raise self._damaged(name, error) from error
        return array

    def _verify(self, name: str) -> None:
        """Checks a stored member's checksum, the first time that a part of it is read."""
        with self._lock:
            if name in self._verified:
                return
            value, rest = 0, self.size(name)
            with self.path.open("rb") as file:
                file.seek(self._starts[name])
                while rest and (block := file.read(min(_BLOCK, rest))):
                    value = zlib.crc32(block, value)
                    rest -= len(block)
            self._check_sum(name, value)

    def _check_sum(self, name: str, value: int) -> None:
        if value != self._infos[name].CRC:
            raise WeightFileError(
                f"{self.path}: damaged: member {name!r} does not match its checksum; fetch the "
                "file again"
            )
        self._verified.add(name)

    def _damaged(self, name: str, error: Exception) -> WeightFileError:
        return WeightFileError(f"{self.path}: damaged: member {name!r}: {error}")


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _check_members(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    if len(infos) > MAX_MEMBERS:
        raise WeightFileError(f"{path}: {len(infos)} members; at most {MAX_MEMBERS} are read")
    names: set[str] = set()
    for info in infos:
        name, parts = info.filename, PurePosixPath(info.filename)
        if name in names:
            raise WeightFileError(f"{path}: two members are called {name!r}")
        names.add(name)
        if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
            raise WeightFileError(f"{path}: member {name!r} is a path outside the archive")
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise WeightFileError(f"{path}: member {name!r} is a link or a device, not a file")
        if info.flag_bits & _ENCRYPTED:
            raise WeightFileError(f"{path}: member {name!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightFileError(f"{path}: member {name!r} is packed in an unusual way")
    total, size = sum(info.file_size for info in infos), path.stat().st_size
    if total > MAX_RATIO * size:
        raise WeightFileError(
            f"{path}: {size} bytes that would unpack to {total}; refused as a zip bomb (more than "
            f"{MAX_RATIO} times the file)"
        )


def _check_ranges(path: Path, infos: list[zipfile.ZipInfo], directory: int) -> dict[str, int]:
    """Where each member's bytes start; they must lie one behind the other up to the directory.

    A directory with a damaged entry may lack those behind it, and nobody else would notice.
    """
    starts, end = {}, 0
    with path.open("rb") as file:
        for info in sorted(infos, key=lambda x: x.header_offset):
            _check_gap(path, end, info.header_offset)
            file.seek(info.header_offset)
            fields = file.read(_LOCAL_HEADER.size)
            if len(fields) < _LOCAL_HEADER.size or fields[:4] != b"PK\x03\x04":
                raise WeightFileError(f"{path}: damaged: no header of member {info.filename!r}")
            name_length, extra_length = _LOCAL_HEADER.unpack(fields)[-2:]
            start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            stored = info.compress_type == zipfile.ZIP_STORED
            if stored and info.compress_size != info.file_size:
                raise WeightFileError(f"{path}: damaged: two sizes of member {info.filename!r}")
            starts[info.filename] = start
            end = start + info.compress_size
    _check_gap(path, end, directory)
    return starts


def _check_gap(path: Path, end: int, start: int) -> None:
    if not 0 <= start - end <= _MAX_GAP:
        raise WeightFileError(
            f"{path}: damaged: the members of the archive overlap or leave a gap at byte {end}"
        )
