"""Parquet files with pictures, or their paths, and captions; read a row group at a time."""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipjax.data.captions import check_how
from clipjax.data.source import Example, SampleError
from clipjax.data.sources import downloads
from clipjax.data.sources.fields import field_of, fields_of, group_fields, group_text, text_of
from clipjax.data.sources.folder import name_of_picture, read_named, root_identity
from clipjax.data.sources.label_column import LabelColumn, refuse_without_label
from clipjax.data.storage.files import StoredFile, find_files
from clipjax.data.storage.paths import DataPath, data_path, short_names
from clipjax.files import sha256


class Parquet:
    """Rows of Parquet files.

    An example costs the row group that it stands in; those that were read last are held in
    memory, up to `cache_mb`. Files whose pictures fill large row groups are slow in random
    order: `clipjax data pack` brings them to a format that is not.

    The fingerprint holds the footers, not the rows: data of the same shape whose chunks have the
    same sizes and the same statistics goes unnoticed, and so do pictures that rows name by path.

    Args:
        where: a file or a pattern, e.g. `DIR/*.parquet`.
        image_field: the column with the picture: its bytes, its path, or a struct with `bytes`
            and `path`, as Hugging Face datasets have it; by default the first known name, else, as
            img2dataset writes `files`, the column `key`: `00000/KEY.jpg` beside `00000.parquet`. A
            row that img2dataset could not download is left out on purpose (`filtered_download`).
        text_field: the column with the caption, a list of captions, or a map (or struct) from
            language to these; several columns become a map from their names.
        label_field: a column with the class, as number or name.
        group_field: columns, of which an evaluation counts by group: `region`, `income`.
        root: folder that relative paths start from and that all have to lie in; by default that
            of the first file.
        cache_mb: megabytes of row groups held in memory.
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
        root: str | None = None,
        cache_mb: float = 256,
    ):
        if not 0 <= cache_mb < 1e9:  # nor NaN
            raise ValueError(f"cache_mb={cache_mb} in the SPEC: give megabytes, 0 or more")
        check_how(captions, where)
        from clipjax.data.sources.row_groups import RowGroups, image_column  # slow to import

        files = find_files(where, suffix=".parquet")
        self._groups = RowGroups(files, int(cache_mb * 1e6))
        columns = self._groups.columns
        keyed = downloads.is_keyed(columns, image_field)
        schema = self._groups.schema
        self._image = downloads.KEY if keyed else image_column(schema, image_field, where)
        self._texts = fields_of(columns, text_field, where, label_field=label_field)
        self._language = language
        self.captions, self.numbered_from = captions, first_label
        self._folder = files[0].path.parent
        self._root = data_path(root) if root else self._folder
        self._parents = [self._root if root else file.path.parent for file in files]
        self._names = short_names([file.path.url for file in files])
        self._classes = None
        self._extension = self._find_extension(files, root) if keyed else None
        used = [self._image, *self._texts]
        status = downloads.columns_of_status(columns)
        self._by_download = bool(status)
        used += status
        if label_field is not None:
            label_field = field_of(columns, label_field, (), "label_field", where)
            used.append(label_field)
            own = functools.partial(self._groups.class_names, label_field, where)
            self._classes = LabelColumn(class_names, own, first_label)
        else:
            refuse_without_label(where, class_names=class_names, first_label=first_label)
        self._label = label_field
        given = group_fields(group_field)
        self.group_names = tuple(field_of(columns, n, (), "group_field", where) for n in given)
        used += self.group_names
        self.class_names = self._classes and self._classes.names
        self._groups.columns = list(dict.fromkeys(used))
        self._groups.warn_if_large(where)

    def __len__(self) -> int:
        return self._groups.ends[-1]

    def __getitem__(self, index: int) -> Example:
        file, number, row = self._groups.place(index)
        key = f"{self._names[file]}:{number}"
        table = self._groups.read(index, key)
        try:
            values = {
                name: table[name][row].as_py(maps_as_pydicts="lossy") for name in table.column_names
            }
        except UnicodeDecodeError as error:  # Parquet does not check what it is told is text
            raise SampleError("text_encoding", f"the row is not UTF-8: {error}", key) from error
        except (ValueError, ArithmeticError) as error:  # a date or a time that there is not
            raise SampleError(
                "damaged", f"the row has a value that is none: {error}", key
            ) from error
        example: Example = {"image": self._picture(values, file, key), "text": "", "key": key}
        if self._classes is not None:
            example["label"], example["text"] = self._classes.read(values[self._label], key)
        if self.group_names:
            example["groups"] = {n: group_text(values[n], key) for n in self.group_names}
        if not self._texts:
            return example
        texts = {name: values[name] for name in self._texts}
        value = texts[self._texts[0]] if len(texts) == 1 else texts
        example["text"] = text_of(value, key, self._language, self.captions)
        return example

    @property
    def matched(self) -> str | None:
        """How the cells find the class names that are given, reading their column; None where
        none are."""
        if self._classes is None or self._label is None:
            return None
        return self._classes.matched_by(self._groups.column(self._label))

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        for name, count in zip(self._names, self._groups.rows_of_files(), strict=True):
            yield from (f"{name}:{row}" for row in range(count))

    def pictures(self) -> Iterator[tuple[str | None, bytes | None] | None]:
        """Says whose picture each row holds; reads the column with the pictures once.

        One is another's if they have equal bytes and, where a name stands beside these, an equal
        name; of rows that hold a path alone, if that is equal.
        """
        files = (
            file for file, count in enumerate(self._groups.rows_of_files()) for _ in range(count)
        )
        for value, file in zip(self._groups.column(self._image), files, strict=True):
            content, root, path = self._content_and_path(value, file)
            if content:
                yield path if isinstance(path, str) else None, hashlib.sha256(content).digest()
            else:
                name = name_of_picture(root, path)
                yield None if name is None else (str(root / name), None)

    def fingerprint(self) -> str:
        """SHA-256 of the files' sizes and footers, of the columns that are used, and of how `root`
        lies to the first file.

        A footer holds the schema, and place, size and statistics of every column chunk; contents
        are not hashed.
        """
        identity: list[Any] = ["parquet/3", self._groups.footers, self._image, self._texts]
        identity += [self._label, self._language, self.class_names]
        identity.append(root_identity(self._root, self._folder))
        identity += [self.captions] if self.captions == "lines" else []
        identity += [self.numbered_from] if self.numbered_from else []
        identity += [self.group_names] if self.group_names else []
        return sha256(json.dumps(identity))

    def uids(self) -> Iterator[Any] | None:
        """Gives the column `uid` in order; None if there is none."""
        names = self._groups.schema.names
        return self._groups.column("uid") if "uid" in names else None

    def _find_extension(self, files: Sequence[StoredFile], root: str | None) -> str:
        """Finds how the pictures beside the files are called, by the first that was downloaded."""
        keys = self._groups.column(downloads.KEY)
        done: Iterator[Any] = itertools.repeat(downloads.DONE)
        if downloads.STATUS in self._groups.schema.names:
            done = self._groups.column(downloads.STATUS)
        rows = itertools.chain.from_iterable(
            itertools.repeat(file, count) for file, count in enumerate(self._groups.rows_of_files())
        )
        found = (
            (f, k) for f, k, s in zip(rows, keys, done, strict=False) if k and s == downloads.DONE
        )
        file, key = next(found, (0, None))
        return downloads.extension_beside(files[file], key, data_path(root) if root else None)

    def _picture(self, values: Mapping[str, Any], file: int, key: str) -> bytes:
        content, root, path = self._content_and_path(values[self._image], file)
        if content:
            return content
        if self._by_download:
            downloads.check_status(values, key)
        if not isinstance(path, str) or not path:
            raise SampleError("missing_image", "the row has no picture", key)
        return read_named(root, path, key)

    def _content_and_path(self, value: Any, file: int) -> tuple[bytes | None, DataPath, Any]:
        """Gives the bytes of a cell where it has some, and its path with the folder of that."""
        if self._extension is not None:
            path = downloads.path_of(self._names[file], value, self._extension)
            return None, self._parents[file], path
        if isinstance(value, dict):
            path, value = value.get("path"), value.get("bytes")
        else:
            path = value
        return value if isinstance(value, bytes) and value else None, self._root, path
