"""A folder of pictures: a class a folder, or a `.txt` beside each picture."""

import collections
import hashlib
from collections.abc import Iterator, Sequence

from absl import logging
from etils import epath

from clipjax.data.paths import data_path
from clipjax.data.source import Example, SampleError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
LAYOUTS = ("auto", "classes", "captions")


class Folder:
    """Pictures below a directory, in the order of their paths.

    Layout `classes`: `DIR/tabby cat/1.jpg`, the text is the folder's name with spaces for `_`.
    Layout `captions`: `DIR/1.jpg` and `DIR/1.txt`, each line of which is a caption.

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
        if not self._root.is_dir():
            raise ValueError(f"there is no directory {where}")
        files = sorted(_files_below(self._root))
        self._images = [p for p in files if p.suffix.lower() in EXTENSIONS]
        if not self._images:
            raise ValueError(f"{where} holds no picture ({' '.join(EXTENSIONS)})")
        texts = {p.with_suffix("") for p in files if p.suffix == ".txt"}
        paired = texts & {p.with_suffix("") for p in self._images}
        self._captioned = layout == "captions" or (layout == "auto" and bool(paired))
        self._report(files, texts - paired if self._captioned else set())
        self.class_names = None if self._captioned else self._read_classes(class_names)
        if self._captioned and class_names is not None:
            raise ValueError(f"{where} has captions: class_names are of no use there")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        path = self._images[index]
        key = str(path.relative_to(self._root))
        example: Example = {"image": read_bytes(path, key), "text": "", "key": key}
        if self.class_names is not None:
            example["label"] = self._labels[path.parent.name]
            example["text"] = self.class_names[example["label"]]
        else:
            example["text"] = _read_captions(path.with_suffix(".txt"), key)
        return example

    def fingerprint(self) -> str:
        """SHA-256 of layout, class names, and the paths and sizes of all pictures."""
        digest = hashlib.sha256(f"folder/1/{self._captioned}/{self.class_names}".encode())
        for path in self._images:
            name = path.relative_to(self._root).as_posix()
            digest.update(f"{name}\0{path.stat().length}\n".encode())
            text = path.with_suffix(".txt")
            if self._captioned and text.exists():
                digest.update(hashlib.sha256(text.read_bytes()).digest())
        return digest.hexdigest()

    def _read_classes(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        top = [p for p in self._images if p.parent == self._root]
        if top:
            raise ValueError(
                f"{self._root} holds {len(top)} pictures that are in no class folder, e.g. "
                f"{top[0].name}, and no captions beside them (.txt)"
            )
        folders = sorted({p.parent.name for p in self._images})
        self._labels = {name: label for label, name in enumerate(folders)}
        if class_names is None:
            return tuple(name.replace("_", " ") for name in folders)
        if len(class_names) != len(folders):
            raise ValueError(
                f"{self._root} has {len(folders)} class folders, class_names has "
                f"{len(class_names)} names"
            )
        return tuple(class_names)

    def _report(self, files: list[epath.Path], orphans: set[epath.Path]) -> None:
        """Says what is not used: a mistake in naming would otherwise pass unseen."""
        known = (*EXTENSIONS, ".txt")
        others = collections.Counter(p.suffix for p in files if p.suffix.lower() not in known)
        if others:
            kinds = ", ".join(f"{n} {suffix or '(none)'}" for suffix, n in others.most_common(5))
            logging.warning("%s: files that are no pictures are not used: %s", self._root, kinds)
        if orphans:
            example = min(orphans)
            logging.warning(
                "%s: %d captions have no picture, e.g. %s.txt", self._root, len(orphans), example
            )


def _files_below(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def read_bytes(path: epath.Path, key: str) -> bytes:
    """Reads a picture; SampleError `missing_image` or `unreadable` if that fails."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SampleError("missing_image", f"there is no file {path}", key) from error
    except OSError as error:
        raise SampleError("unreadable", f"{path}: {error}", key) from error


def _read_captions(path: epath.Path, key: str) -> str | tuple[str, ...]:
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except FileNotFoundError as error:
        raise SampleError("missing_text", f"there is no caption {path}", key) from error
    except UnicodeDecodeError as error:
        raise SampleError("text_encoding", f"{path} is not UTF-8: {error}", key) from error
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        raise SampleError("text_empty", f"{path} is empty", key)
    return captions[0] if len(captions) == 1 else captions
