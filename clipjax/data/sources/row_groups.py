"""Row groups of Parquet files: read whole, those read last held in memory.

Importing Arrow takes its time: only what reads Parquet imports this module.
"""

import collections
import concurrent.futures
import itertools
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from clipjax.data.source import SampleError, place_of
from clipjax.data.sources.fields import IMAGE_FIELDS, field_of
from clipjax.data.sources.label_column import class_names_of
from clipjax.data.storage.file_reader import FileReader
from clipjax.data.storage.files import StoredFile, read
from clipjax.data.storage.retrying import StorageError
from clipjax.files import sha256
from clipjax.strict_json import parse_json

LARGE_GROUP = 64 << 20  # bytes that a random example should not cost
# What files may unpack to: a page may name one value millions of times, or pack zeros.
MAX_RATIO, MIN_UNPACKED = 100, 1 << 30  # of a row group, times its file's bytes and bytes at least
MAX_ROWS = 1000  # of a file, for each of its bytes
_PIECES = 1 << 10
_THREADS = 16
_BLOCK = 64 << 10


class RowGroups:
    """Row groups of many files of one schema."""

    def __init__(self, files: Sequence[StoredFile], budget: int):
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            metadata = list(pool.map(_read_metadata, files))
            self.footers = list(pool.map(_footer_sha256, files))
        self.schema: pa.Schema = metadata[0].schema.to_arrow_schema()
        for file, data in zip(files, metadata, strict=True):
            if data.schema.to_arrow_schema().names != self.schema.names:
                raise ValueError(f"{file.path} has other columns than {files[0].path}")
        self._files, self._metadata = tuple(files), tuple(metadata)
        self._budget, self.columns = budget, list(self.schema.names)
        self._groups = [
            (file, group)
            for file, data in enumerate(metadata)
            for group in range(data.num_row_groups)
        ]
        counts = (metadata[file].row_group(group).num_rows for file, group in self._groups)
        self.ends = list(itertools.accumulate(counts)) or [0]
        self._file_starts = [0, *itertools.accumulate(self.rows_of_files())]
        self._reset()

    def rows_of_files(self) -> list[int]:
        """Number of rows of every file."""
        return [data.num_rows for data in self._metadata]

    def place(self, index: int) -> tuple[int, int, int]:
        """Gives an example's file, its row in the file, and its row in the row group."""
        number, row = place_of(index, self.ends)
        file = self._groups[number][0]
        return file, index - self._file_starts[file], row

    def read(self, index: int, key: str) -> pa.Table:
        """Gives the row group of an example; SampleError if it is damaged."""
        number, _ = place_of(index, self.ends)
        with self._lock:
            loading = self._loading.setdefault(number, threading.Lock())
        try:
            with loading:  # threads that want the same one wait for it
                with self._lock:
                    if number in self._tables:
                        self._tables.move_to_end(number)
                        return self._tables[number]
                table = self._load(number, self.columns, key)
                self._keep(number, table)
                return table
        finally:
            with self._lock:
                # Not that of a thread which came when this one's was gone.
                if self._loading.get(number) is loading:
                    del self._loading[number]

    def _keep(self, number: int, table: pa.Table) -> None:
        with self._lock:
            # One that waited for a lock which is gone by now may load what another is loading.
            if number in self._tables:
                self._held -= self._tables.pop(number).nbytes
            self._tables[number] = table
            self._held += table.nbytes
            while self._held > self._budget and len(self._tables) > 1:
                self._held -= self._tables.popitem(last=False)[1].nbytes

    def column(self, name: str) -> Iterator[Any]:
        """Gives the values of a column in order, reading it alone; None in a damaged row group."""
        for number, (start, end) in enumerate(itertools.pairwise([0, *self.ends])):
            try:
                values = self._load(number, [name], name)[name].to_pylist()
            except (SampleError, UnicodeDecodeError):
                values = [None] * (end - start)
            yield from values

    def class_names(self, column: str, where: str) -> tuple[str, ...] | None:
        """Names of the classes in a column: its texts, or what the schema says of its numbers; None
        where these have no names.
        """
        names = None
        if pa.types.is_integer(self.schema.field(column).type):
            names = _hugging_face_names(self.schema, column)
        if names is not None:
            return names
        values: set[Any] = set()
        for number in range(len(self._groups)):
            values.update(_distinct(self._load(number, [column], column)[column]))
        return class_names_of(values, column, where)

    def warn_if_large(self, where: str) -> None:
        """Says what a random example costs where that is much."""
        rows = max(1, len(self._groups))
        mean = sum(file.size for file in self._files) / rows
        if mean > LARGE_GROUP:
            logging.warning(
                "%s has row groups of %.0f MB, and an example in random order costs one: pack it "
                "for training, or write it with fewer rows a group.",
                where,
                mean / 1e6,
            )

    def _load(self, number: int, columns: list[str], key: str) -> pa.Table:
        file, group = self._groups[number]
        rows = self._metadata[file].row_group(group).num_rows
        allowed = max(MIN_UNPACKED, MAX_RATIO * self._files[file].size)
        batches, size = [], 0
        try:
            reader = pq.ParquetFile(
                FileReader(self._files[file], block=_BLOCK),
                metadata=self._metadata[file],
                page_checksum_verification=True,
            )
            # In pieces, so that one that unpacks to too much is noticed before it is in memory.
            for batch in reader.iter_batches(
                max(64, rows // _PIECES), row_groups=[group], columns=columns, use_threads=False
            ):
                batches.append(batch)
                size += batch.nbytes
                if size > allowed:
                    what = f"row group {group} of {self._files[file].path} unpacks to more than"
                    raise SampleError("damaged", f"{what} {allowed:,} bytes", key)
            table = pa.Table.from_batches(batches, reader.schema_arrow if not batches else None)
        except (pa.ArrowException, OSError) as error:
            if not _is_damage(error):
                raise
            what = f"row group {group} of {self._files[file].path}: {error}"
            raise SampleError("damaged", what, key) from error
        if table.num_rows != rows:
            raise SampleError("damaged", f"row group {group} has {table.num_rows} rows", key)
        return table

    def _reset(self) -> None:
        self._tables: collections.OrderedDict[int, pa.Table] = collections.OrderedDict()
        self._held, self._lock = 0, threading.Lock()
        self._loading: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # For worker processes: what was read stays where it was read.
        cache = ("_tables", "_held", "_lock", "_loading")
        return {name: value for name, value in self.__dict__.items() if name not in cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _is_damage(error: Exception) -> bool:
    """Whether the bytes are at fault, which Arrow says by an OSError without a number, too."""
    if isinstance(error, OSError):
        return error.errno is None and not isinstance(error, StorageError)
    return not isinstance(error, pa.ArrowMemoryError)


def _distinct(column: pa.ChunkedArray) -> list[Any]:
    try:
        return column.unique().to_pylist()
    except pa.ArrowNotImplementedError:  # lists and the like, which are no classes
        return []


def _read_metadata(file: StoredFile) -> pq.FileMetaData:
    try:
        found = pq.read_metadata(FileReader(file, block=_BLOCK))
        found.schema.to_arrow_schema()  # raises, if it says of itself what cannot be
    except (pa.ArrowException, OSError, struct.error) as error:
        if not _is_damage(error):
            raise
        raise ValueError(f"{file.path} is no whole Parquet file: {error}") from error
    if found.num_rows > MAX_ROWS * file.size:
        raise ValueError(f"{file.path} has {file.size:,} bytes, and says {found.num_rows:,} rows")
    return found


def _footer_sha256(file: StoredFile) -> list[Any]:
    length = struct.unpack("<I", read(file.path, file.size - 8, 4))[0]
    footer = read(file.path, file.size - 8 - length, length)
    return [file.size, sha256(footer)]


def image_column(schema: pa.Schema, given: str | None, where: str) -> str:
    """Finds the column with the picture."""
    name = field_of(schema.names, given, IMAGE_FIELDS, "image_field", where)
    kind = schema.field(name).type
    inside = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    is_path = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_bytes or is_path or {"bytes", "path"} & inside):
        raise ValueError(
            f"{where} has {kind} in {name!r}; a picture is bytes, a path, or a struct with bytes "
            "and path: give ?image_field=NAME in the SPEC"
        )
    return name


def _hugging_face_names(schema: pa.Schema, field: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face datasets write into the schema."""
    packed = (schema.metadata or {}).get(b"huggingface")
    try:
        features = parse_json(packed)["info"]["features"] if packed else {}
        names = features[field]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else None
