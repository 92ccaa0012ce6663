"""Files and folders that appear whole or not at all, and the SHA-256 of what they hold."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# How the names begin under which something is written.
TEMPORARY = ".tmp-"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Writes a file or a folder under another name; it takes `path` when the block ends well.

    What stood at `path` stays as it is until then, and if the block raises. When this returns, both
    the content and the name are on the disk.

    Yields:
        A path in the same folder, with the same ending, where nothing is yet.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        rename_synced(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_file(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file by `replacing`; a text in UTF-8."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sweep(folder: Path, name: str = "*") -> None:
    """Deletes what `replacing` left of killed processes, where no other one is writing."""
    for left_over in folder.glob(f"{TEMPORARY}*-{name}"):
        shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()


def rename_synced(source: Path, target: Path) -> None:
    """Renames a file, or a folder with all it holds, so that the name never outlives the content.

    Args:
        source: what was written; flushed to the disk before.
        target: its name in the same folder, which is flushed afterwards; a file there is replaced.
    """
    for path in [*source.rglob("*"), source] if source.is_dir() else [source]:
        sync(path)
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Waits until a file, or what a folder says of its entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(*parts: bytes | memoryview | str) -> str:
    """SHA-256, in hexadecimal digits, of bytes and texts (in UTF-8) one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal digits; read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
