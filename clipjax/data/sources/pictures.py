"""Pictures by themselves: no classes, no captions."""

from collections.abc import Iterator

from clipjax.data.source import Example
from clipjax.data.sources.folder import list_named, pictures_among, read_bytes, report_unused
from clipjax.data.storage.files import is_folder
from clipjax.data.storage.paths import data_path
from clipjax.files import sha256


class Pictures:
    """Pictures below a directory, in the order of their paths, without texts.

    They can be embedded, searched and cleaned of duplicates; training takes pairs. The keys are
    those of `folder:`. Names that begin with a dot, and `__MACOSX`, are skipped. The fingerprint
    holds names and sizes, not contents.

    Args:
        where: the directory.

    Raises:
        ValueError: there is no such directory, or no picture in it.
    """

    class_names = None

    def __init__(self, where: str) -> None:
        self._root = data_path(where)
        if not is_folder(self._root):
            raise ValueError(f"there is no directory {where}")
        sizes, unusable = list_named(self._root)
        self._sizes = {name: sizes[name] for name in pictures_among(sizes, where)}
        self._names = list(self._sizes)
        report_unused(self._root, sizes, unusable)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        key = self._names[index]
        return {"image": read_bytes(self._root / key, key), "text": "", "key": key}

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        return iter(self._names)

    def fingerprint(self) -> str:
        """SHA-256 of the paths and sizes of the pictures."""
        named = (f"{name}\0{size}\n" for name, size in self._sizes.items())
        return sha256("pictures/1\n", *named)
