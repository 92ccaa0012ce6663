"""Files and directories that appear whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clipjax.interop.tensors import WeightFileError


def _sibling(path: Path) -> Path:
    # In the same directory, so that the rename stays on one file system; with the same ending.
    return path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")


def check_new(path: Path) -> None:
    """Checks that a path is free and its directory is there.

    Raises:
        WeightFileError: it is not.
    """
    if os.path.lexists(path):
        raise WeightFileError(f"{path} exists; nothing is overwritten: give another path")
    if not path.absolute().parent.is_dir():
        raise WeightFileError(f"{path.absolute().parent} is no directory; make it first")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name when the block ends well.

    Raises:
        WeightFileError: the path is taken.
    """
    with new_path(path) as temporary, temporary.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Gives a sibling to write a file or a directory to, renamed when the block ends well.

    Raises:
        WeightFileError: the path is taken.
    """
    check_new(path)
    temporary = _sibling(path)
    try:
        yield temporary
        check_new(path)
        temporary.rename(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
