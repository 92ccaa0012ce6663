"""A directory that is built once: whole or not at all, by one process at a time."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from absl import logging

from clipjax.files import replacing, sweep

T = TypeVar("T")


def cache_dir() -> Path:
    """`$CLIPJAX_CACHE`, by default `~/.cache/clipjax`."""
    return Path(os.environ.get("CLIPJAX_CACHE") or "~/.cache/clipjax").expanduser()


def build_once(
    directory: Path, build: Callable[[Path], None], open_checked: Callable[[Path], T]
) -> T:
    """Opens a cached directory, building it first where it is missing or damaged.

    It is built under another name, synced and renamed, so that a process killed at any point
    leaves nothing that looks finished; a lock lets a second process wait for the first. A
    ValueError of `open_checked` means that it is damaged.

    Raises:
        ValueError: if the directory does not open even after it was built anew.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with lock(directory.with_name(directory.name + ".lock"), wait=True):
        if directory.exists():
            try:
                return open_checked(directory)
            except ValueError as error:
                aside = directory.with_name(f"{directory.name}.damaged-{time.time_ns()}")
                directory.rename(aside)
                logging.warning("%s Moved to %s; building it anew.", error, aside)
        sweep(directory.parent, directory.name)
        with replacing(directory) as work:
            work.mkdir()
            build(work)
    return open_checked(directory)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds an exclusive lock between threads and processes; False where another has it.

    The kernel gives it back if this process dies.
    """
    with path.open("w") as file:  # every opening of the file is a holder of its own
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            logging.info("Waiting for another process that holds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield True
