"""Files and directories that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from clipjax.files import replacing
from clipjax.interop.tensors import WeightFileError


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
def new_path(path: Path) -> Iterator[Path]:
    """Gives a sibling to write a file or a directory to, renamed when the block ends well.

    Raises:
        WeightFileError: the path is taken.
    """
    check_new(path)
    with replacing(path) as temporary:
        yield temporary
        check_new(path)
