"""Where plug-ins are imported from: the folder that the command stands in, and the config's."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path


def make_importable(folders: Iterable[str | os.PathLike[str]]) -> None:
    """Lets modules of folders be imported, after all that is installed: they hide nothing."""
    for folder in folders:
        path = str(Path(folder).absolute())
        if path not in sys.path:
            sys.path.append(path)


def folder_of_config(argv: list[str]) -> Path | None:
    """The folder of the file that `--config FILE[:args]` names among arguments; None without."""
    for number, text in enumerate(argv):
        flag, equals, value = text.partition("=")
        if flag in ("--config", "-config"):
            value = value if equals else "".join(argv[number + 1 : number + 2])
            return Path(value.partition(":")[0]).parent if value else None
    return None
