"""Sets that ask which of a group's texts belongs to which of its images, as published."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from clipjax.data.images.limits import ImageError
from clipjax.data.images.preprocess import decode_image
from clipjax.data.source import Example, SampleError
from clipjax.data.sources.fields import whole_text
from clipjax.data.sources.folder import read_named, root_identity
from clipjax.data.sources.table_rows import read_rows
from clipjax.data.storage.files import is_folder, read_given
from clipjax.data.storage.paths import data_path
from clipjax.data.storage.text_files import decode_text
from clipjax.files import sha256
from clipjax.strict_json import parse_fields

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class CaptionGroup(NamedTuple):
    """Images and captions, of which the i-th image and the i-th caption belong together.

    Attributes:
        key: names the record.
        images: indices of the source; no more than there are captions.
        captions: two or more.
        category: what is tested, where the file says it; else empty.
    """

    key: str
    images: tuple[int, ...]
    captions: tuple[str, ...]
    category: str = ""


class Association(NamedTuple):
    """Candidate images, some of which a cue was given for.

    Attributes:
        key: names the record.
        cue: a word or a few.
        images: indices of the source, two or more.
        right: of each of them whether it is associated; of some and not of all.
    """

    key: str
    cue: str
    images: tuple[int, ...]
    right: tuple[bool, ...]


class CaptionGroups:
    """A source of images, each once, and `groups` that say which captions compete for them.

    A key is the path of a picture, with the box that is cut from it. The fingerprint holds the
    file, not the pictures.

    Args:
        where: the file.
        root: folder that the names of pictures start from and that all have to lie in; by default
            the first of the folders `beside` that there is next to the file, else the file's own.
    """

    class_names = None
    captions = "whole"
    task = "compositional"
    smallest_category = 1  # groups of a category that counts in the mean over categories
    beside: ClassVar[tuple[str, ...]] = ("images",)

    def __init__(self, where: str, *, root: str | None = None):
        path = data_path(where)
        content = read_given(where)
        self._where = where
        folder = path.parent
        found = (folder / name for name in self.beside if is_folder(folder / name))
        self._root = data_path(root) if root else next(found, folder)
        self._pictures: dict[tuple[str, Box | None], int] = {}
        self.groups = tuple(self._read(decode_text(content, where)))
        self._keys = [
            name if box is None else f"{name}[{','.join(map(str, box))}]"
            for name, box in self._pictures
        ]
        self._places = list(self._pictures)
        identity = [f"{type(self).__name__}/1", root_identity(self._root, path.parent)]
        self._fingerprint = sha256(json.dumps(identity), content)

    def _read(self, text: str) -> Iterator[CaptionGroup]:
        raise NotImplementedError  # each published format has its own

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        (name, box), key = self._places[index], self._keys[index]
        image: Any = read_named(self._root, name, key)
        if box is not None:
            try:
                # As published: a box is of the pixels as they are stored.
                image = decode_image(image, converted=True).crop(box)
            except ImageError as error:
                raise SampleError(error.reason, str(error), key) from error
        return {"image": image, "text": "", "key": key}

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        return iter(self._keys)

    def fingerprint(self) -> str:
        """SHA-256 of the file and of how `root` lies to it."""
        return self._fingerprint

    def _group(
        self,
        key: str,
        names: Iterable[Any],
        captions: Iterable[Any],
        *,
        box: Box | None = None,
        category: str = "",
    ) -> CaptionGroup:
        """Checks what a record says and numbers its pictures."""
        names, captions = tuple(names), tuple(captions)
        for text in (*names, *captions):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"{self._where}, {key}: {text!r:.80} is no name of a picture, or no caption; "
                    "expected a text that is not empty"
                )
        if len(captions) < 2:
            raise ValueError(
                f"{self._where}, {key}: there is nothing to choose from: 1 caption; expected 2"
            )
        rows = (self._pictures.setdefault((n, box), len(self._pictures)) for n in names)
        texts = tuple(whole_text(c) for c in captions)
        return CaptionGroup(key, tuple(rows), texts, category)

    def _fields(self, record: Any, key: str, names: Iterable[str]) -> list[Any]:
        """Takes fields of a record; says which it lacks."""
        lacks = [n for n in names if not isinstance(record, Mapping) or n not in record]
        if lacks:
            raise ValueError(
                f"{self._where}, {key}: the record has no {', '.join(lacks)}: "
                f"{record!r:.80}; is the file one of {type(self).__name__}?"
            )
        return [record[name] for name in names]

    def _json(self, text: str, kind: type) -> Any:
        try:
            found = parse_fields(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._where} is no JSON: {error}") from error
        if not isinstance(found, kind):
            raise ValueError(
                f"{self._where} holds {type(found).__name__}, and a file of "
                f"{type(self).__name__} holds {'an object' if kind is dict else 'a list'}"
            )
        return found


class SugarCrepe(CaptionGroups):
    """A part of SugarCrepe (arXiv:2306.14610), as `swap_obj.json`: COCO's pictures, 2 captions.

    The file holds, by number, `filename`, `caption` and `negative_caption`. Pictures are COCO's
    `val2017`.
    """

    beside = ("val2017", "images")

    def _read(self, text: str) -> Iterator[CaptionGroup]:
        for key, record in self._json(text, dict).items():
            fields = ("filename", "caption", "negative_caption")
            name, *captions = self._fields(record, key, fields)
            yield self._group(key, [name], captions)


class Winoground(CaptionGroups):
    """Winoground (arXiv:2204.03162), as `examples.jsonl` beside `images/`: 2 pictures, 2 captions.

    A line holds `id`, `image_0`, `image_1` (names of PNGs), `caption_0` and `caption_1`.
    """

    def _read(self, text: str) -> Iterator[CaptionGroup]:
        seen = set()
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                record = parse_fields(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self._where}, line {number} is no JSON: {error}") from error
            fields = ("id", "image_0", "image_1", "caption_0", "caption_1")
            key, *rest = self._fields(record, f"line {number}", fields)
            if str(key) in seen:
                raise ValueError(f"{self._where}, line {number}: the id {key} stands twice")
            seen.add(str(key))
            names = (f"{n}.png" if isinstance(n, str) and "." not in n else n for n in rest[:2])
            category = record.get("collapsed_tag")
            yield self._group(
                str(key), names, rest[2:], category=category if isinstance(category, str) else ""
            )


class Aro(CaptionGroups):
    """A part of ARO (arXiv:2210.01936): `visual_genome_relation.json` or `..._attribution.json`.

    A record holds `image_path`, the box `bbox_x`, `bbox_y`, `bbox_w`, `bbox_h` that is cut from it,
    `true_caption`, `false_caption`, and `relation_name` or two `attributes`, which are its
    category; a pair of attributes counts in the mean over categories from 25 records on, as
    published. Or, of the order of words, `image` (or `image_path`) and `caption_options`, the right
    one first.
    """

    def _read(self, text: str) -> Iterator[CaptionGroup]:
        for number, record in enumerate(self._json(text, list)):
            key = f"record {number}"
            if isinstance(record, Mapping) and "caption_options" in record:
                name = record.get("image", record.get("image_path"))
                options = record["caption_options"]
                yield self._group(key, [name], options if isinstance(options, list) else [options])
                continue
            fields = ("image_path", "true_caption", "false_caption")
            name, *captions = self._fields(record, key, fields)
            sides = self._fields(record, key, ("bbox_x", "bbox_y", "bbox_w", "bbox_h"))
            if not all(isinstance(s, int) for s in sides) or min(sides[2:]) < 1:
                raise ValueError(
                    f"{self._where}, {key}: the box is {sides}; expected whole numbers x, y and a "
                    "width and height of at least 1"
                )
            x, y, width, height = sides
            category = record.get("relation_name", "")
            if isinstance(pair := record.get("attributes"), list):
                category, self.smallest_category = "_".join(map(str, pair)), 25
            box = (x, y, x + width, y + height)
            yield self._group(key, [name], captions, box=box, category=str(category))


class Winogavil(CaptionGroups):
    """WinoGAViL (arXiv:2207.12576), as `winogavil_dataset.csv` beside `winogavil_images/`.

    A row holds `cue`, and as lists of JSON `candidates`, names of JPEGs, and `associations`, those
    of them that the cue was given for.
    """

    task = "winogavil"
    beside = ("winogavil_images", "images")

    def _read(self, text: str) -> Iterator[CaptionGroup]:
        self.associations = tuple(self._rows(text))
        return iter(())  # its pictures have no captions of their own

    def _rows(self, text: str) -> Iterator[Association]:
        for number, row in enumerate(read_rows(text, ".csv", None, self._where).rows, 1):
            key = f"row {number}"
            cue, *cells = self._fields(row, key, ("cue", "candidates", "associations"))
            candidates, associations = (self._names(cell, key) for cell in cells)
            twice = len({*candidates}) < len(candidates)
            if not cue.strip() or twice or not {*associations} < {*candidates} or not associations:
                raise ValueError(
                    f"{self._where}, {key}: the cue {cue!r:.80} has the candidates {candidates} "
                    f"and the associations {associations}; expected a cue, candidates that differ, "
                    "and some of them, not all, as associations"
                )
            names = ((f"{name}.jpg", None) for name in candidates)
            images = tuple(self._pictures.setdefault(n, len(self._pictures)) for n in names)
            right = tuple(name in associations for name in candidates)
            yield Association(key, whole_text(cue), images, right)

    def _names(self, cell: str, key: str) -> list[str]:
        try:
            found: Any = parse_fields(cell)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(n, str) and n.strip() for n in found):
            raise ValueError(
                f"{self._where}, {key}: {cell!r:.80} is no list of names; expected one as JSON "
                'writes it, ["bison", "beard"]'
            )
        return found
