"""Files of pictures, named one by one or by their folders, as a source."""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from clipjax.data.source import Example
from clipjax.data.sources.folder import EXTENSIONS
from clipjax.data.storage.files import local_path
from clipjax.files import sha256


class PictureFiles:
    """Pictures in the order in which they are named; those of a folder in that of their paths.

    A folder without a picture beside others is a warning.

    Args:
        paths: files, and folders of which all pictures below are taken; hidden ones are not.

    Raises:
        ValueError: there is no such file, or no picture in any of the folders.
    """

    class_names = None

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.paths: list[Path] = []
        empty = []
        for given in paths:
            path = local_path(given, way="download the picture first")
            if not path.exists():
                raise ValueError(f"{given} cannot be used: there is no such file")
            found = _pictures_below(path) if path.is_dir() else [path]
            empty += [] if found else [f"{given} holds no picture ({' '.join(EXTENSIONS)})"]
            self.paths += found
        if not self.paths:
            raise ValueError("; ".join(empty) or "no picture is named")
        for words in empty:
            logging.warning("%s", words)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        return {"image": path.read_bytes(), "text": "", "key": str(path)}

    def fingerprint(self) -> str:
        """SHA-256 of the paths."""
        return sha256("\n".join(map(str, self.paths)))


def _pictures_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
