"""A folder of pictures: a class a folder, or a `.txt` beside each picture."""

import collections
import errno
import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence

from absl import logging

from clipjax.data.paths import DataPath, data_path
from clipjax.data.retrying import is_wrong_path
from clipjax.data.source import Example, SampleError
from clipjax.data.storage import StoredFile, is_folder, list_files, read_all

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
LAYOUTS = ("auto", "classes", "captions")


class Folder:
    """Pictures below a directory, in the order of their paths.

    Layout `classes`: `DIR/tabby cat/1.jpg`, the text is the folder's name with spaces for `_`.
    Layout `captions`: `DIR/1.jpg` and `DIR/1.txt`, each line of which is a caption.

    The fingerprint holds names and sizes of the pictures, not their contents: one that is replaced
    by another of the same size goes unnoticed.

    Args:
        where: the directory.
        layout: `classes`, `captions`, or `auto`: captions if any picture has a `.txt`.
        class_names: names for the class folders, in the folders' alphabetical order.

    Raises:
        ValueError: if there is no such directory, no picture in it, or the names do not fit.
    """

    def __init__(
        self, where: str, *, layout: str = "auto", class_names: Sequence[str] | None = None
    ):
        if layout not in LAYOUTS:
            raise ValueError(f"folder has no layout {layout!r}; it has {', '.join(LAYOUTS)}")
        self._root = data_path(where)
        if not is_folder(self._root):
            raise ValueError(f"there is no directory {where}")
        prefix = len(self._root.url.rstrip("/")) + 1
        sizes = {file.path.url[prefix:]: file.size for file in _list(self._root)}
        unnamed = [name for name in sizes if not _is_text(name)]
        for name in unnamed:
            del sizes[name]
        self._images = [name for name in sizes if _suffix(name).lower() in EXTENSIONS]
        if not self._images:
            raise ValueError(
                f"{where} holds no picture ({' '.join(EXTENSIONS)}) with a name in UTF-8"
            )
        texts = [name for name in sizes if _suffix(name).lower() == ".txt"]
        self._texts = {_stem(name): name for name in texts}
        stems = {_stem(name) for name in self._images}
        self._captioned = layout == "captions" or (
            layout == "auto" and not stems.isdisjoint(self._texts)
        )
        orphans = [name for stem, name in self._texts.items() if stem not in stems]
        doubles = [name for name in texts if self._texts[_stem(name)] != name]
        if not self._captioned:
            orphans = doubles = []
        self._report(sizes, orphans, doubles, unnamed)
        self._sizes = [sizes[name] for name in self._images]
        self.class_names = None if self._captioned else self._read_classes(class_names)
        if self._captioned and class_names is not None:
            raise ValueError(f"{where} has captions: class_names are of no use there")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        key = self._images[index]
        example: Example = {"image": read_bytes(self._root / key, key), "text": "", "key": key}
        if self.class_names is not None:
            example["label"] = self._labels[_folder(key)]
            example["text"] = self.class_names[example["label"]]
        else:
            name = self._texts.get(_stem(key), f"{_stem(key)}.txt")
            example["text"] = _read_captions(self._root / name, key)
        return example

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        return iter(self._images)

    def fingerprint(self) -> str:
        """SHA-256 of layout, class names, the paths and sizes of pictures, and the captions."""
        digest = hashlib.sha256(f"folder/2/{self._captioned}/{self.class_names}".encode())
        for name, size in zip(self._images, self._sizes, strict=True):
            digest.update(f"{name}\0{size}\n".encode())
            if self._captioned and _stem(name) in self._texts:
                content = read_all(self._root / self._texts[_stem(name)])
                digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def _read_classes(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        top = [name for name in self._images if "/" not in name]
        if top:
            raise ValueError(
                f"{self._root} holds {len(top)} pictures that are in no class folder, e.g. "
                f"{top[0]}, and no captions beside them (.txt)"
            )
        folders = sorted({_folder(name) for name in self._images})
        self._labels = {name: label for label, name in enumerate(folders)}
        if class_names is None:
            return tuple(name.replace("_", " ") for name in folders)
        if len(class_names) != len(folders):
            raise ValueError(
                f"{self._root} has {len(folders)} class folders, class_names has "
                f"{len(class_names)} names"
            )
        return tuple(class_names)

    def _report(
        self, names: Iterable[str], orphans: list[str], doubles: list[str], unnamed: list[str]
    ) -> None:
        """Says what is not used: a mistake in naming would otherwise pass unseen."""
        known = (*EXTENSIONS, ".txt")
        others = collections.Counter(_suffix(n) for n in names if _suffix(n).lower() not in known)
        if others:
            kinds = ", ".join(f"{n} {suffix or '(none)'}" for suffix, n in others.most_common(5))
            logging.warning("%s: files that are no pictures are not used: %s", self._root, kinds)
        for files, what in (
            (orphans, "captions have no picture"),
            (doubles, "captions are not used, as their pictures have another file of them"),
            (unnamed, "files are not used, as their names are not UTF-8: rename them"),
        ):
            if files:
                example = os.fsencode(min(files)).decode("utf-8", "backslashreplace")
                logging.warning("%s: %d %s, e.g. %s", self._root, len(files), what, example)


def _list(root: DataPath) -> list[StoredFile]:
    try:
        return list_files(root, recursive=True)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        folder, link = os.path.split(error.filename)
        raise ValueError(
            f"{os.path.realpath(folder)}/{link} is a link that leads in a circle: remove it"
        ) from error


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8: keys and class names are text, and go into files."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1]


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _folder(name: str) -> str:
    return posixpath.basename(posixpath.dirname(name))


def root_identity(root: DataPath, default: DataPath) -> str:
    """Names a root for a fingerprint: from the default one, so that both may move together."""
    if root.scheme != default.scheme:
        return root.url
    return os.path.relpath(*(path.url.rpartition("://")[2] for path in (root, default)))


def read_named(root: DataPath, name: str, key: str) -> bytes:
    """Reads the picture that a row names; SampleError `path_refused` if it may not, or as below."""
    try:
        path = root.below(name)
    except ValueError as error:
        raise SampleError("path_refused", str(error), key) from error
    return read_bytes(path, key)


def read_bytes(path: DataPath, key: str, what: str = "image") -> bytes:
    """Reads an `image` or `text`; SampleError `missing_...` or `unreadable` if its path is wrong.

    Storage that does not answer, and a machine that has no memory or open files left, raise
    OSError, which stops the run: an example that is replaced for the time of an outage would make
    another batch than it makes without.
    """
    try:
        return read_all(path)
    except FileNotFoundError as error:
        raise SampleError(f"missing_{what}", f"there is no file {path}", key) from error
    except OSError as error:
        if not is_wrong_path(error):
            raise
        raise SampleError("unreadable", f"{path}: {error}", key) from error


def _read_captions(path: DataPath, key: str) -> str | tuple[str, ...]:
    try:
        lines = read_bytes(path, key, "text").decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise SampleError("text_encoding", f"{path} is not UTF-8: {error}", key) from error
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        raise SampleError("text_empty", f"{path} is empty", key)
    return captions[0] if len(captions) == 1 else captions
