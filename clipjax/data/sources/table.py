"""A table of image paths and captions: CSV, TSV or JSON lines."""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from clipjax.data.captions import check_how
from clipjax.data.classes.numbers import labels_of_numbers
from clipjax.data.source import Example, SampleError
from clipjax.data.sources.fields import (
    IMAGE_FIELDS,
    field_of,
    fields_of,
    group_fields,
    group_text,
    text_of,
)
from clipjax.data.sources.folder import name_of_picture, read_named, root_identity
from clipjax.data.sources.label_column import (
    LabelColumn,
    class_names_of,
    number_of,
    refuse_without_label,
)
from clipjax.data.sources.table_rows import read_rows
from clipjax.data.storage.files import read_given
from clipjax.data.storage.paths import data_path
from clipjax.data.storage.text_files import decode_text
from clipjax.files import sha256


class Table:
    """Rows with the path of a picture and its caption or captions.

    The fingerprint holds the table, not the pictures: one that is replaced goes unnoticed.

    Args:
        where: the file; `.csv` quotes cells as RFC 4180 has it, `.tsv` is separated by tabs and
            its quotes are text, `.jsonl` holds one object a line. With a separator, any name.
        image_field: the column with the path; by default the first known name
            (`image`, `filepath`, `path`, ...).
        text_field: the column with the caption, in JSON also a list of captions, or a map from
            language to caption or captions; by default the first known name (`text`, ...), and
            where there is none, the class is the text. Several columns become a map from their
            names.
        label_field: a column with the class, as name or number, for evaluation; in JSON a list of
            them where a picture has several.
        group_field: columns, of which an evaluation counts by group: `region`, `income`.
        separator: `comma`, `semicolon`, `tab` or `pipe`, or the character, in place of that of the
            file's name; quotes are text beside tabs and `|`.
        root: folder that relative paths start from and that all have to lie in; by default that
            of the table.
    """

    positional_keys = True  # numbers of rows

    def __init__(
        self,
        where: str,
        *,
        image_field: str | None = None,
        text_field: str | Sequence[str] | None = None,
        label_field: str | None = None,
        class_names: Sequence[str] | None = None,
        first_label: int | None = None,
        group_field: str | Sequence[str] = (),
        language: str | None = None,
        captions: str | None = None,
        separator: str | None = None,
        root: str | None = None,
    ):
        check_how(captions, where)
        path = data_path(where)
        content = read_given(where)
        text = decode_text(content, where)
        rows, self._lines, self._ragged = read_rows(text, path.suffix.lower(), separator, where)
        if not rows:
            raise ValueError(f"{where} holds no row")
        first = rows[0]
        image_field = field_of(first, image_field, IMAGE_FIELDS, "image_field", where)
        text_fields = fields_of(first, text_field, where, label_field=label_field)
        text_field = text_fields[0] if len(text_fields) == 1 else text_fields
        self._has_texts = bool(text_fields)
        self._name, self._root = path.name, data_path(root) if root else path.parent
        self._images = [row.get(image_field) for row in rows]
        self._texts = [
            row.get(text_field)
            if isinstance(text_field, str)
            else {name: row.get(name) for name in text_field}
            for row in rows
        ]
        self._uids = [row.get("uid") for row in rows] if "uid" in first else None
        self._language, self.captions, self.numbered_from = language, captions, first_label
        self._classes: LabelColumn | None = None
        self._labels: list[Any] = []
        self.several = False
        given = group_fields(group_field)
        self.group_names = tuple(field_of(first, n, (), "group_field", where) for n in given)
        self._groups = [
            {n: group_text(row.get(n), where) for n in self.group_names} for row in rows
        ]
        if label_field is not None:
            label_field = field_of(first, label_field, (), "label_field", where)
            self._labels = [row.get(label_field) for row in rows]
            written = [cell for cell in self._labels if cell is not None]
            self.several = bool(written) and all(isinstance(cell, list) for cell in written)
            cells = self._cells()
            if class_names is not None and first_label is None:
                _refuse_shifted(cells, class_names, where)
            own = functools.partial(class_names_of, cells, label_field, where)
            self._classes = LabelColumn(class_names, own, first_label)
        else:
            refuse_without_label(where, class_names=class_names, first_label=first_label)
        self.class_names = None if self._classes is None else self._classes.names
        identity: list[Any] = ["table/3", image_field, text_field, label_field, language]
        identity.append(self.class_names)
        identity.append(root_identity(self._root, path.parent))
        identity += [captions] if captions == "lines" else []
        identity += [first_label] if first_label else []
        identity += [self.group_names] if self.group_names else []
        self._fingerprint = sha256(json.dumps(identity), content)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        try:
            return self._read(index)
        except SampleError as error:
            message = f"line {self._lines[index]}: {error.message}"
            raise SampleError(error.reason, message, error.key) from error

    def _read(self, index: int) -> Example:
        image, text = self._images[index], cast(Any, self._texts[index])
        key = f"{self._name}:{index}"
        if index in self._ragged:
            count = self._ragged[index]
            raise SampleError(
                "row_cells", f"the row has {count} cells, not those of the header", key
            )
        if not isinstance(image, str) or not image:
            raise SampleError("missing_image", "the row names no picture", key)
        if self._has_texts:
            text = text_of(text, key, self._language, self.captions)
        picture = read_named(self._root, image, key)
        example: Example = {"image": picture, "text": text, "key": key}
        if self._classes is not None:
            cell = self._labels[index]
            cells = cell if self.several and cell is not None else [cell]
            read = [self._classes.read(each, key) for each in cells]
            if self.several:
                example["labels"] = tuple(label for label, _ in read)
            else:
                example["label"] = read[0][0]
            names = ", ".join(name for _, name in read)
            example["text"] = text if self._has_texts else names
        if self.group_names:
            example["groups"] = self._groups[index]
        return example

    @property
    def matched(self) -> str | None:
        """How the cells find the class names that are given; None where none are."""
        return None if self._classes is None else self._classes.matched_by(self._cells())

    @functools.cached_property
    def repeated(self) -> tuple[int, str] | None:
        """How many rows with a class name the picture of a row before them, and two of these."""
        if self._classes is None:
            return None
        first: dict[str, int] = {}
        count, told = 0, ""
        for row, name in enumerate(self.pictures()):
            before = first.setdefault(name, row) if name is not None else row
            if before != row:
                count += 1
                classes = " and ".join(repr(self._labels[n]) for n in (before, row))
                lines = f"{self._lines[before]} and {self._lines[row]}"
                told = told or f"lines {lines} name {name}, with the classes {classes}"
        return (count, told) if count else None

    def _cells(self) -> list[Any]:
        """The classes of all rows: several a row where these are lists."""
        if not self.several:
            return self._labels
        return [cell for cells in self._labels for cell in cells or ()]

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        return (f"{self._name}:{index}" for index in range(len(self)))

    def pictures(self) -> Iterator[str | None]:
        """Says whose picture each row names: equal paths are one; None where there is none."""
        return (name_of_picture(self._root, image) for image in self._images)

    def uids(self) -> Iterator[Any] | None:
        """Gives the column `uid` in order; None if there is none."""
        return None if self._uids is None else iter(self._uids)

    def fingerprint(self) -> str:
        """SHA-256 of the table, of the columns that are used, and of how `root` lies to it."""
        return self._fingerprint


def _refuse_shifted(labels: Sequence[Any], class_names: Sequence[str], where: str) -> None:
    """Refuses numbers of classes that count from 1."""
    named = set(class_names)
    cells = {cell for cell in labels if isinstance(cell, str | int) and cell not in named}
    numbers = {number for cell in cells if (number := number_of(cell)) is not None}
    if numbers and min(numbers) == 1 and max(numbers) == len(class_names):
        labels_of_numbers(sorted(numbers), len(class_names), None, where)
