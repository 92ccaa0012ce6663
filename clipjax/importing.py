"""Where plug-ins are imported from: the folder that the command stands in, and the config's."""

import os
import re
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType

# `module:Name`, and what is sent to worker processes.
_RESOLVERS = ("clipjax.building", "clipjax.data.loading.workers_messages")
_IMPORTS = re.compile(r"^<frozen importlib|[\\/]importlib[\\/]\w+\.py$")


class LastFinder:
    """Finds in folders what nothing else finds, for those who may ask for it.

    At the end of `sys.path` they would still hide packages without an `__init__.py`, such as
    `orbax` and `google`: Python looks on for one that has it. And libraries try for others that
    need not be there, such as `torch`: for them, a folder holds nothing.
    """

    def __init__(self) -> None:
        self.folders: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Finds a module by its name; what is inside a package is found by that package."""
        if path is not None or not self._may_ask():
            return None
        return PathFinder.find_spec(name, self.folders)

    def _may_ask(self) -> bool:
        """Whether who imports is in the folders, or resolves names that a person has given."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and _IMPORTS.search(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None or frame.f_globals.get("__name__") in ("__main__", *_RESOLVERS):
            return True
        file = os.path.abspath(frame.f_code.co_filename)
        return any(file.startswith(os.path.join(folder, "")) for folder in self.folders)


FINDER = LastFinder()


def make_importable(folders: Iterable[str | os.PathLike[str]]) -> None:
    """Lets modules of folders be imported, after all that is installed: they hide nothing."""
    if FINDER not in sys.meta_path:
        sys.meta_path.append(FINDER)
    for folder in folders:
        path = str(Path(folder).absolute())
        if path not in FINDER.folders:
            FINDER.folders.append(path)


def importable_folders() -> tuple[str, ...]:
    """The folders of `make_importable`, for processes that are started."""
    return tuple(FINDER.folders)


def folder_of_config(argv: list[str]) -> Path | None:
    """The folder of the file that `--config FILE[:args]` names among arguments; None without."""
    for number, text in enumerate(argv):
        flag, equals, value = text.partition("=")
        if flag in ("--config", "-config"):
            value = value if equals else "".join(argv[number + 1 : number + 2])
            return Path(value.partition(":")[0]).parent if value else None
    return None
