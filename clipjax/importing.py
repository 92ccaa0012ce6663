"""Where plug-ins are imported from: the folder that the command stands in, and the config's."""

import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


class _LastFinder:
    """Finds in folders what nothing else finds.

    At the end of `sys.path` they would still hide packages without an `__init__.py`, such as
    `orbax` and `google`: Python looks on for one that has it.
    """

    def __init__(self) -> None:
        self.folders: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Finds a module by its name; what is inside a package is found by that package."""
        return None if path is not None else PathFinder.find_spec(name, self.folders)


_FINDER = _LastFinder()


def make_importable(folders: Iterable[str | os.PathLike[str]]) -> None:
    """Lets modules of folders be imported, after all that is installed: they hide nothing."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    for folder in folders:
        path = str(Path(folder).absolute())
        if path not in _FINDER.folders:
            _FINDER.folders.append(path)


def importable_folders() -> tuple[str, ...]:
    """The folders of `make_importable`, for processes that are started."""
    return tuple(_FINDER.folders)


def folder_of_config(argv: list[str]) -> Path | None:
    """The folder of the file that `--config FILE[:args]` names among arguments; None without."""
    for number, text in enumerate(argv):
        flag, equals, value = text.partition("=")
        if flag in ("--config", "-config"):
            value = value if equals else "".join(argv[number + 1 : number + 2])
            return Path(value.partition(":")[0]).parent if value else None
    return None
