"""A folder of pictures: a class a folder, or a `.txt` beside each picture."""

import collections
import errno
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from absl import logging

from clipjax.data.captions import as_lines, check_how
from clipjax.data.classes.matching import match_classes
from clipjax.data.classes.named_lists import warn_of_twins
from clipjax.data.classes.numbers import numbers_of
from clipjax.data.images import formats as image_formats
from clipjax.data.source import Example, SampleError
from clipjax.data.sources.fields import group_fields
from clipjax.data.storage.files import StoredFile, is_folder, list_files, read, stat
from clipjax.data.storage.paths import DataPath, data_path
from clipjax.data.storage.retrying import is_wrong_path
from clipjax.data.storage.text_files import not_utf8
from clipjax.redaction import redact

EXTENSIONS = tuple(f".{extension}" for extension in image_formats.EXTENSIONS)
LAYOUTS = ("auto", "classes", "captions")
# The largest picture, without any packing, takes half of it.
MAX_BYTES = {"image": 1 << 29, "text": 1 << 26}
# As `train`, `val2017` of COCO, `extra` of SVHN, `unlabeled` of STL-10, `train_images`.
_SPLIT = re.compile(
    r"(train(ing)?|val(id(ation)?)?|test(ing)?|trainval|minival|dev|eval(uation)?|extra"
    r"|unlabell?ed)([-_]?(images?|imgs?|set|split))?[-_]?\d*",
    re.IGNORECASE,
)
_ARCHIVED = "__MACOSX"  # where macOS keeps what it knows of the files of an archive


class Folder:
    """Pictures below a directory, in the order of their paths.

    Layout `classes`: `DIR/tabby cat/1.jpg`, the text is the name of the first folder below DIR,
    with spaces for `_`. Folders that are called by whole numbers are in the order of these.
    Layout `captions`: `DIR/1.jpg` and `DIR/1.txt`, each line of which is a caption.
    Names that begin with a dot, and `__MACOSX`, are skipped.

    The fingerprint holds names and sizes of the pictures, not their contents: one that is replaced
    by another of the same size goes unnoticed.

    Args:
        where: the directory.
        layout: `classes`, `captions`, or `auto`: captions if any picture has a `.txt`.
        class_names: names for the class folders, which are found there as `match_classes` says:
            by name, by WordNet id, by number, or in the folders' alphabetical order.
        first_label: the number of the first of `class_names`.
        group_field: names of the folders between the class and the picture, of which an evaluation
            counts by group: `region,country` of `DIR/chair/Africa/Kenya/1.jpg`.
        captions: `lines`, the default, makes each line of a `.txt` a caption; `whole` does not.

    Raises:
        ValueError: if there is no such directory, no picture in it, or the names do not fit; if
            its folders are splits and no classes, or its captions stand in `.json`.
    """

    def __init__(
        self,
        where: str,
        *,
        layout: str = "auto",
        class_names: Sequence[str] | None = None,
        first_label: int | None = None,
        group_field: str | Sequence[str] = (),
        captions: str | None = None,
    ):
        if layout not in LAYOUTS:
            raise ValueError(f"folder has no layout {layout!r}; it has {', '.join(LAYOUTS)}")
        check_how(captions, f"folder:{where}")
        self._root = data_path(where)
        if not is_folder(self._root):
            raise ValueError(f"there is no directory {where}")
        sizes, unusable = list_named(self._root)
        self._images = pictures_among(sizes, where)
        texts = [name for name in sizes if _suffix(name).lower() == ".txt"]
        self._texts = {_stem(name): name for name in texts}
        stems = {_stem(name) for name in self._images}
        self._captioned = layout == "captions" or (
            layout == "auto" and not stems.isdisjoint(self._texts)
        )
        of_class = ".txt are not used: the text is the class's name (?layout=captions reads them)"
        unused = {} if self._captioned else {of_class: texts}
        if self._captioned:
            orphans = [name for stem, name in self._texts.items() if stem not in stems]
            unused["captions have no picture"] = orphans
            doubles = "captions are not used, as their pictures have another file of them"
            unused[doubles] = [name for name in texts if self._texts[_stem(name)] != name]
        report_unused(self._root, sizes, unused | unusable)
        self._refuse_splits()
        if layout == "auto" and not self._captioned:
            self._refuse_json(sizes)
        self._sizes = [sizes[name] for name in self._images]
        self.captions = captions or "lines"
        self._told_lines = captions is not None
        self.first_label = first_label
        self.group_names = group_fields(group_field)
        self._refuse_without_groups()
        self.class_names = self._labels = None
        self.empty_classes: tuple[str, ...] = ()
        self.matched: str | None = None
        if not self._captioned:
            self.class_names, self._labels = self._read_classes(class_names, first_label)
            self.empty_classes = self._find_empty(sizes)
        of_classes = {"class_names": class_names, "first_label": first_label}
        of_classes["group_field"] = self.group_names or None
        for option, given in of_classes.items():
            if self._captioned and given is not None:
                raise ValueError(f"{where} has captions: {option} are of no use there")
        if captions is not None and not self._captioned:
            raise ValueError(f"{where} has classes: captions={captions} is of no use there")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        key = self._images[index]
        example: Example = {"image": read_bytes(self._root / key, key), "text": "", "key": key}
        if self.class_names is not None and self._labels is not None:
            example["label"] = label = self._labels[_class_of(key)]
            example["text"] = self.class_names[label]
            if self.group_names:
                folders = key.split("/")[1:]
                example["groups"] = dict(zip(self.group_names, folders, strict=False))
        else:
            name = self._texts.get(_stem(key), f"{_stem(key)}.txt")
            example["text"] = _read_captions(self._root / name, key, self.captions)
        return example

    def labels(self) -> Iterator[int]:
        """Gives the labels of all examples in order; none where there are captions."""
        return (self._labels[_class_of(name)] for name in self._images if self._labels)

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        return iter(self._images)

    def fingerprint(self) -> str:
        """SHA-256 of layout, class names, the paths and sizes of pictures, and the captions."""
        digest = hashlib.sha256(f"folder/2/{self._captioned}/{self.class_names}".encode())
        if self._captioned and self.captions != "lines":
            digest.update(self.captions.encode())
        if self.group_names:
            digest.update(json.dumps(self.group_names).encode())
        if not self._is_plain():
            digest.update(json.dumps(self._labels).encode())
        several = 0
        for name, size in zip(self._images, self._sizes, strict=True):
            digest.update(f"{name}\0{size}\n".encode())
            if self._captioned and _stem(name) in self._texts:
                try:
                    content = read_bytes(self._root / self._texts[_stem(name)], name, "text")
                except SampleError as error:
                    content = error.reason.encode()
                digest.update(hashlib.sha256(content).digest())
                several += b"\n" in content.strip()
        if several and not self._told_lines:  # here all of them are read
            self._told_lines = True
            logging.info(
                "%s: %d of %d texts hold several lines, and each line is a caption; "
                "?captions=whole in the SPEC leaves a text whole",
                self._root,
                several,
                len(self._images),
            )
        return digest.hexdigest()

    def _is_plain(self) -> bool:
        """Whether every picture stands right in its class folder, and these are in order."""
        if self._labels is None:
            return True
        in_order = all(label == i for i, (_, label) in enumerate(sorted(self._labels.items())))
        return in_order and all(name.count("/") == 1 for name in self._images)

    def _read_classes(
        self, class_names: Sequence[str] | None, first_label: int | None
    ) -> tuple[tuple[str, ...], dict[str, int]]:
        """Gives the names of the classes, and the label of each folder."""
        top = [name for name in self._images if "/" not in name]
        if top:
            raise ValueError(
                f"{self._root} holds {len(top)} pictures that are in no class folder, e.g. "
                f"{top[0]}, and no captions beside them (.txt); without either they can be "
                f"embedded, searched and cleaned of duplicates, as pictures:{self._root}"
            )
        folders = sorted({_class_of(name) for name in self._images})
        if not self.group_names:
            self._refuse_one_folder_of_classes(folders)
        try:
            numbers = numbers_of(folders)
        except ValueError as error:
            raise ValueError(f"{self._root}: {error}") from error
        if numbers is not None:
            folders = [folder for _, folder in sorted(zip(numbers, folders, strict=True))]
        if first_label is not None and numbers is None:
            raise ValueError(
                f"first_label={first_label} is of no use for {self._root}: it is for folders that "
                "are called by whole numbers"
            )
        labels: Sequence[int] = range(len(folders))
        if class_names is None:
            names = tuple(name.replace("_", " ") for name in folders)
            places = (str(self._root / folder) for folder in folders)
            warn_of_twins(dict(zip(places, names, strict=True)))
        else:
            names = tuple(class_names)
            where = str(self._root)
            labels, self.matched = match_classes(folders, names, where, first_label=first_label)
        return names, dict(zip(folders, labels, strict=True))

    def _find_empty(self, names: Iterable[str]) -> tuple[str, ...]:
        """Finds folders beside those of the classes that hold no picture."""
        there = {_class_of(name) for name in names if "/" in name}
        if self._root.is_local:  # a bucket has no folder without a file
            with os.scandir(self._root.url) as entries:
                there |= {e.name for e in entries if e.is_dir() and _is_text(e.name)}
        empty = there - {_class_of(name) for name in self._images}
        return tuple(sorted(name for name in empty if not _is_hidden(name)))

    def _refuse_one_folder_of_classes(self, folders: Sequence[str]) -> None:
        """Refuses `DIR/images/cat/1.jpg`, `DIR/images/dog/1.jpg`: one class, by torchvision's rule,
        where several are meant."""
        below = {name.split("/")[1] for name in self._images if name.count("/") > 1}
        if len(folders) == 1 and len(below) > 1:
            inner = self._root / folders[0]
            raise ValueError(
                f"{self._root} has one class folder, {folders[0]}, and in it {len(below)} more, "
                f"e.g. {min(below)}: if these are the classes, write folder:{inner}"
            )

    def _refuse_without_groups(self) -> None:
        """Refuses pictures that stand in fewer folders than groups are asked for."""
        levels = len(self.group_names) + 1
        flat = [name for name in self._images if name.count("/") < levels]
        if self.group_names and not self._captioned and flat:
            raise ValueError(
                f"{self._root}: group_field={','.join(self.group_names)} names the folders between "
                f"class and picture, and {len(flat)} of {len(self._images)} pictures do not stand "
                f"in {levels}, e.g. {flat[0]}; groups in a table are read by csv:FILE or jsonl:FILE"
            )

    def _refuse_splits(self) -> None:
        """Refuses a directory of splits: they would be taken for classes, or mixed."""
        top = {name.partition("/")[0] for name in self._images if "/" in name}
        loose = any("/" not in name for name in self._images)
        few = 2 if self._captioned else 1  # captions of a single one are not mixed with others
        if len(top) >= few and not loose and all(map(_SPLIT.fullmatch, top)):
            one = self._root / ("train" if "train" in top else min(top))
            raise ValueError(
                f"{self._root} holds the splits {', '.join(sorted(top))}: write the one that is "
                f"meant, e.g. folder:{one}"
            )

    def _refuse_json(self, names: Iterable[str]) -> None:
        """Refuses pictures whose captions stand in `.json`: folders would become their text."""
        beside = {_stem(name) for name in names if _suffix(name).lower() == ".json"}
        described = [name for name in self._images if _stem(name) in beside]
        if described:
            raise ValueError(
                f"{self._root} has a .json and no .txt beside {len(described)} of "
                f"{len(self._images)} pictures, e.g. {described[0]}: captions are read from .txt, "
                "or from a table (jsonl:FILE with the columns `image` and `text`); if the folders "
                "are classes, write ?layout=classes in the SPEC"
            )


def list_named(root: DataPath) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Gives the sizes of the files below a root by their paths, and those that are not used."""
    prefix = len(root.url.rstrip("/")) + 1
    sizes = {file.path.url[prefix:]: file.size for file in _list(root)}
    unnamed = [name for name in sizes if not _is_text(name)]
    hidden = [name for name in sizes if _is_hidden(name) and _is_text(name)]
    for name in (*unnamed, *hidden):
        del sizes[name]
    return sizes, {
        "files are not used, as their names are not UTF-8: rename them": unnamed,
        "files are not used, as their names or those of their folders are hidden": hidden,
    }


def pictures_among(names: Iterable[str], where: str) -> list[str]:
    """Gives the names of pictures; ValueError where there is none."""
    found = [name for name in names if _suffix(name).lower() in EXTENSIONS]
    if not found:
        raise ValueError(f"{where} holds no picture ({' '.join(EXTENSIONS)}) with a name in UTF-8")
    return found


def report_unused(root: DataPath, names: Iterable[str], unused: Mapping[str, list[str]]) -> None:
    """Says what is not used: a mistake in naming would otherwise pass unseen."""
    known = (*EXTENSIONS, ".txt")
    others = collections.Counter(_suffix(n) for n in names if _suffix(n).lower() not in known)
    if others:
        kinds = ", ".join(f"{n} {suffix or '(none)'}" for suffix, n in others.most_common(5))
        logging.warning("%s: files that are no pictures are not used: %s", root, kinds)
    for what, files in unused.items():
        if files:
            example = os.fsencode(min(files)).decode("utf-8", "backslashreplace")
            logging.warning("%s: %d %s, e.g. %s", root, len(files), what, example)


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


def _is_hidden(name: str) -> bool:
    """Whether a part of a name begins with a dot, or is a folder that macOS packs."""
    return any(part.startswith(".") or part == _ARCHIVED for part in name.split("/"))


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1]


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _class_of(name: str) -> str:
    """The first folder below the root, as torchvision has it."""
    return name.partition("/")[0]


def root_identity(root: DataPath, default: DataPath) -> str:
    """Names a root for a fingerprint: from the default one, so that both may move together."""
    if root.scheme != default.scheme:
        return redact(root.url)  # a new credential is no other place
    return os.path.relpath(*(path.url.rpartition("://")[2] for path in (root, default)))


def name_of_picture(root: DataPath, name: object) -> str | None:
    """Gives the path that a row names, below the root and written one way, wherever that is.

    None if it names none that may be read.
    """
    try:
        found = root.below(name).normal if isinstance(name, str) and name else None
    except ValueError:
        return None
    return None if found is None else found.removeprefix(root.normal).lstrip("/")


def read_named(root: DataPath, name: str, key: str) -> bytes:
    """Reads the picture that a row names; SampleError `path_refused` if it may not, or as below."""
    try:
        path = root.below(name)
    except ValueError as error:
        raise SampleError("path_refused", str(error), key) from error
    return read_bytes(path, key)


def read_bytes(path: DataPath, key: str, what: str = "image") -> bytes:
    """Reads an `image` or `text`; SampleError `missing_...` or `unreadable` if its path is wrong.

    So it is of a file that is larger than any picture that is read, or any text.

    Storage that does not answer, and a machine that has no memory or open files left, raise
    OSError, which stops the run: an example that is replaced for the time of an outage would make
    another batch than it makes without.
    """
    try:
        size = stat(path).size
        if size > MAX_BYTES[what]:
            raise SampleError("unreadable", f"{path} has {size:,} bytes: no {what} has", key)
        return read(path, 0, size)
    except FileNotFoundError as error:
        raise SampleError(f"missing_{what}", f"there is no file {path}", key) from error
    except OSError as error:
        if not is_wrong_path(error):
            raise
        raise SampleError("unreadable", f"{path}: {error}", key) from error


def _read_captions(path: DataPath, key: str, captions: str) -> str | tuple[str, ...]:
    try:
        text = read_bytes(path, key, "text").decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError("text_encoding", f"{path} {not_utf8(error)}", key) from error
    if not text:
        raise SampleError("text_empty", f"{path} is empty", key)
    return as_lines(text) if captions == "lines" else text
