"""Reading local and remote files: exact lengths, retries with a limit, errors that name the path.

Local files are read by the operating system, `gs://` and `s3://` by fsspec, byte range by byte
range. A read gives every byte that was asked for, or raises.
"""

import collections
import contextlib
import dataclasses
import errno
import fnmatch
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from absl import logging

from clipjax.data.storage.paths import DataPath, data_path, expand_braces
from clipjax.data.storage.retrying import (
    ShortReadError,
    TruncatedError,
    is_wrong_path,
    retry,
)
from clipjax.files import write_file

_MAX_VISITS = 64  # of one folder, where links lead to it


@dataclasses.dataclass(frozen=True, order=True)
class StoredFile:
    """A file as it was found: where, how many bytes, and which version of them.

    `version` is the object's etag or generation, else its time of modification.
    """

    path: DataPath
    size: int
    version: str


def filesystem(scheme: str | None) -> fsspec.AbstractFileSystem:
    """The fsspec file system of a scheme; fsspec keeps one a process."""
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise ValueError(f"{scheme}:// needs `pip install clipjax[cloud]`: {error}") from error


def stat(path: DataPath) -> StoredFile:
    """Looks a file up; FileNotFoundError if there is none."""
    if path.is_local:
        found = retry(lambda: os.stat(path.url), f"looking up {path}")
        return StoredFile(path, found.st_size, str(found.st_mtime_ns))
    info = retry(lambda: filesystem(path.scheme).info(path.url), f"looking up {path}")
    if info["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "this is a folder", str(path))
    return StoredFile(path, info["size"], _version(info))


def is_folder(path: DataPath) -> bool:
    """Whether there is a folder of this name."""
    if path.is_local:
        return os.path.isdir(path.url)
    return retry(lambda: filesystem(path.scheme).isdir(path.url), f"looking up {path}")


def list_files(folder: DataPath, *, recursive: bool = False) -> list[StoredFile]:
    """Lists the files in a folder, sorted by path; empty if there is no such folder."""
    if folder.is_local:
        return sorted(retry(lambda: _list_local(folder, recursive), f"listing {folder}"))
    system = filesystem(folder.scheme)

    def listing() -> list[dict[str, Any]]:
        system.invalidate_cache()
        if recursive:
            return list(system.find(folder.url, detail=True).values())
        return system.ls(folder.url, detail=True)

    try:
        infos = retry(listing, f"listing {folder}")
    except FileNotFoundError:
        return []
    prefix = system._strip_protocol(folder.url).rstrip("/") + "/"
    return sorted(
        StoredFile(folder / info["name"].removeprefix(prefix), info["size"], _version(info))
        for info in infos
        if info["type"] == "file" and info["name"].startswith(prefix)
    )


def _list_local(
    folder: DataPath, recursive: bool, visits: collections.Counter | None = None
) -> list[StoredFile]:
    visits = collections.Counter() if visits is None else visits
    try:
        entries = os.scandir(folder.url)
        found = os.stat(folder.url)
    except (FileNotFoundError, NotADirectoryError):
        return []
    visits[found.st_dev, found.st_ino] += 1
    # Twenty folders, each with two links to the next one, are a million.
    if visits[found.st_dev, found.st_ino] > _MAX_VISITS:
        entries.close()
        raise ValueError(
            f"{folder} is reached by more than {_MAX_VISITS} ways, over links: remove them"
        )
    files = []
    with entries:
        for entry in entries:
            # One that is gone by now, as another process's temporary file, ends no listing.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    found = entry.stat()
                    version = str(found.st_mtime_ns)
                    files.append(StoredFile(folder / entry.name, found.st_size, version))
                elif entry.is_dir():
                    below = folder / entry.name
                    files += _list_local(below, recursive, visits) if recursive else []
                elif entry.is_symlink():
                    _refuse_dangling(entry)
    return files


def _refuse_dangling(link: os.DirEntry[str]) -> None:
    if link.name.startswith("."):  # editors lock by links that lead to nothing
        return
    target = os.readlink(link.path)  # FileNotFoundError if the link itself is gone
    try:
        os.stat(link.path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{link.path} is a link to {target}, where nothing is: bring that back, or remove it"
        ) from error


def find_files(pattern: str, *, suffix: str = "") -> list[StoredFile]:
    """Finds the files that a pattern names: braces are counted out, wildcards are looked up.

    Args:
        pattern: e.g. `DIR/{00000..00331}.tar` or `gs://bucket/DIR/*.tar`; wildcards stand in the
            last part.
        suffix: that files of the kind have, e.g. `.tar`; one of another name has to be named.

    Raises:
        ValueError: if a named file does not exist or is a folder, a wildcard finds none, or finds
            other files beside those of the suffix, or a file is found twice, as `x-10.tar` by
            `x-{1..10}*.tar`: its examples would count double.
    """
    files: list[StoredFile] = []
    missing = []
    listings: dict[DataPath, dict[str, StoredFile]] = {}
    for name in expand_braces(pattern):
        path = data_path(name)
        wild = _is_wild(path.name)
        if path.is_local and not wild:
            found = [stat(path)] if os.path.isfile(path.url) else []
        else:  # in a bucket, too: a request a file would be slow
            if path.parent not in listings:
                listings[path.parent] = {f.path.name: f for f in list_files(path.parent)}
            there = listings[path.parent]
            names = _matching(there, path.name) if wild else [path.name] * (path.name in there)
            found = [there[name] for name in names]
        if not found:
            missing.append(str(path))
        files += found
    if missing:
        if is_folder(data_path(missing[0])):
            raise ValueError(
                f"{missing[0]} is a folder: write {missing[0].rstrip('/')}/*{suffix}, or name one "
                "of its files"
            )
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"there is no file {', '.join(missing[:3])}{more}")
    _refuse_others(pattern, files, suffix)
    counts = collections.Counter(file.path for file in files)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"{pattern} finds {len(twice)} of {len(counts)} files more than once, e.g. "
            f"{twice[0]}: write a pattern that finds each once, such as {twice[0].parent}/*"
            f"{twice[0].suffix}"
        )
    return files


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    """Gives the names that a pattern finds; hidden ones only if it says so, as in a shell."""
    found = fnmatch.filter(names, pattern)
    if pattern.startswith("."):
        return found
    shown = [name for name in found if not name.startswith(".")]
    if len(shown) < len(found):
        logging.info("%s: %d hidden files are not used", pattern, len(found) - len(shown))
    return shown


def _is_wild(name: str) -> bool:
    return any(c in name for c in "*?[")


def _refuse_others(pattern: str, files: list[StoredFile], suffix: str) -> None:
    """Refuses what a wildcard finds beside the files that are meant, such as their statistics."""
    others = [file.path for file in files if not file.path.name.endswith(suffix)]
    if _is_wild(pattern) and 0 < len(others) < len(files):
        raise ValueError(
            f"{pattern} finds {len(others)} files that are no {suffix}, e.g. {others[0]}: write "
            f"{others[0].parent}/*{suffix}"
        )


def read(path: DataPath, offset: int, size: int) -> bytes:
    """Reads exactly `size` bytes from `offset` on.

    Raises:
        StorageError: after transient errors; other errors, e.g. FileNotFoundError, as they are.
    """
    if size == 0:
        return b""
    what = f"reading bytes {offset}..{offset + size} of {path}"
    if path.is_local:
        return retry(lambda: _read_local(path, offset, size), what)

    def request() -> bytes:
        system = filesystem(path.scheme)
        content = system.cat_file(path.url, start=offset, end=offset + size)
        if len(content) != size:
            raise ShortReadError(f"{len(content)} bytes came of {size}")
        return content

    return retry(request, what)


def _read_local(path: DataPath, offset: int, size: int) -> bytes:
    # Opened for every read: thousands of shards would exceed the limit of open files.
    descriptor = os.open(path.url, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.pread(descriptor, size, offset)
        while len(content) < size:  # one call reads at most 2 GiB
            more = os.pread(descriptor, size - len(content), offset + len(content))
            if not more:
                raise TruncatedError(
                    f"{path} ends at byte {offset + len(content)}, expected one up to "
                    f"{offset + size}: it became shorter"
                )
            content += more
        return content
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def wrong_path_told(where: object) -> Iterator[None]:
    """Says by a ValueError what is wrong with a path that cannot be read, see `is_wrong_path`."""
    try:
        yield
    except OSError as error:
        if not is_wrong_path(error):
            raise
        told = f"there is no file {where} to read: {error.strerror or error}"
        if isinstance(error, PermissionError):
            told = f"{where} may not be read: its owner has to allow it, by chmod +r"
        elif isinstance(error, IsADirectoryError):
            told = f"there is no file {where} to read: it is a folder, name a file of it"
        elif isinstance(error, FileNotFoundError):
            told = f"there is no file {where}"
        raise ValueError(told) from error


def read_all(path: DataPath) -> bytes:
    """Reads a whole file."""
    return read(path, 0, stat(path).size)


def read_given(where: str) -> bytes:
    """Reads a whole file that a SPEC names; ValueError if there is none, or it may not be read."""
    with wrong_path_told(where):
        return read_all(data_path(where))


def write(path: DataPath, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all; makes local folders."""
    if not path.is_local:  # an object appears when it is whole
        system = filesystem(path.scheme)
        retry(lambda: system.pipe_file(path.url, content), f"writing {path}")
        return
    target = Path(path.url)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, content)


def check_writable(path: DataPath) -> None:
    """Makes the folder of a local file and tries to write there, before the work is done."""
    if not path.is_local:
        return
    folder = Path(path.url).parent
    if os.path.isdir(path.url):
        raise ValueError(f"{path} is a folder: name the file to write")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written, {folder} does not allow it ({error.strerror}): give a "
            "path in a folder that you may write to"
        ) from error


def local_path(
    where: str | os.PathLike[str],
    *,
    way: str = "give a local path, and copy what is written there afterwards",
) -> Path:
    """Gives the path of what is written or read piece by piece, which a bucket does not allow.

    Args:
        way: what to do where it is in a bucket or on the web, for the message.
    """
    if not isinstance(where, str | os.PathLike):
        raise ValueError(f"a path is {where!r:.80}, expected a text or a pathlib.Path")
    where = os.fspath(where)
    if where.startswith(("http://", "https://")):
        raise ValueError(f"{where} is an address of the web, which is not opened: {way}")
    path = data_path(where)
    if not path.is_local:
        raise ValueError(
            f"{where} is in a bucket, which cannot be used piece by piece as a folder can: {way}"
        )
    return Path(path.url)


def _version(info: dict[str, Any]) -> str:
    for name in ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "updated"):
        if info.get(name):
            return str(info[name])
    created = info.get("created", "")
    return str(created.timestamp() if hasattr(created, "timestamp") else created)
