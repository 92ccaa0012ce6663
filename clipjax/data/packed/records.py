"""Packed records: image-text pairs in an ArrayRecord file with a manifest beside it.

A record is `b"CJX1"`, the length of its header (little-endian u32), the header as JSON
(`key`, `text`, `label`, `meta`, `blobs`: name -> length) and the blobs one after the other. Nothing
in it can run code. The manifest, `FILE.json`, holds count, size and SHA-256: ArrayRecord itself
opens a truncated file without complaint and says that it has 0 records.
"""

import contextlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from clipjax.data.source import SampleError
from clipjax.data.storage.file_reader import file_sha256
from clipjax.data.storage.files import StoredFile, read_all, stat
from clipjax.data.storage.paths import DataPath, data_path
from clipjax.data.storage.retrying import StorageError
from clipjax.data.storage.shard_cache import ShardCache
from clipjax.strict_json import parse_fields, parse_json

MAGIC = b"CJX1"
FORMAT = "clipjax.records/1"
# Without read-ahead: the order of reading is a permutation.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_MANIFEST = {"count": int, "bytes": int, "sha256": str}


def pack_record(
    *,
    key: str,
    text: tuple[str, ...],
    blobs: Mapping[str, bytes],
    label: int | None = None,
    meta: Mapping[str, Any] | None = None,
) -> bytes:
    """Serialises one image-text pair; `blobs` holds the encoded image under `image`."""
    sizes = {name: len(blob) for name, blob in blobs.items()}
    header: dict[str, Any] = {"key": key, "text": list(text), "blobs": sizes}
    if label is not None:
        header["label"] = label
    if meta:
        header["meta"] = dict(meta)
    packed = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return b"".join((MAGIC, struct.pack("<I", len(packed)), packed, *blobs.values()))


def unpack_record(record: bytes) -> dict[str, Any]:
    """Reads one record: its header's fields, and `blobs` as name -> bytes."""
    if record[:4] != MAGIC or len(record) < 8:
        raise ValueError(f"this is not a packed record: it starts with {record[:4]!r}")
    start = 8 + struct.unpack("<I", record[4:8])[0]
    try:
        header = parse_fields(record[8:start])
        key, blobs = str(header["key"]), {}
        for name, length in header["blobs"].items():
            if type(length) is not int or length < 0:
                raise ValueError(f"record {key!r:.100} has a part of {length!r:.40} bytes")
            blobs[name], start = record[start : start + length], start + length
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is not a packed record: {error!r:.200}") from error
    if start != len(record):
        raise ValueError(f"record {header['key']!r} has {len(record)} bytes, expected {start}")
    return {**header, "blobs": blobs}


def write_records(path: Path, records: Iterable[bytes], **about: Any) -> dict[str, Any]:
    """Writes records and their manifest; not atomic by itself, see `clipjax.files.rename_synced`.

    Args:
        path: the ArrayRecord file to write; the manifest goes to `path` + `.json`.
        **about: more fields of the manifest, e.g. `class_names`.
    """
    # One record a group: random access reads nothing but the record asked for.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    count = 0
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    manifest = {
        "format": FORMAT,
        "count": count,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(stat(DataPath(str(path)))),
        **about,
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    path.with_name(path.name + ".json").write_text(text, encoding="utf-8")
    return manifest


class RecordFile:
    """Random access to a file of packed records that was checked against its manifest.

    A file in a bucket is fetched whole into the cache of shards: ArrayRecord reads local files.

    Raises:
        ValueError: if file or manifest is missing or damaged, or there is no room to fetch it.
    """

    def __init__(self, path: str | Path | DataPath, *, verify: bool = True):
        self.path = data_path(str(path))
        try:
            file = stat(self.path)
        except FileNotFoundError as error:
            raise ValueError(f"there is no file {path}") from error
        manifest = read_manifest(self.path)
        if file.size != manifest["bytes"]:
            raise ValueError(f"{path} has {file.size} bytes, its manifest says {manifest['bytes']}")
        if self.path.is_local and verify and file_sha256(file) != manifest["sha256"]:
            raise ValueError(f"{path} is damaged: its SHA-256 is not the one of its manifest")
        self._open(file, manifest, verify)

    def _open(self, file: StoredFile, manifest: dict[str, Any], verify: bool) -> None:
        self.path, self._file, self.manifest = file.path, file, manifest
        local = _local_copy(file, manifest["sha256"], verify)
        try:
            self._reader = array_record_module.ArrayRecordReader(str(local), READER_OPTIONS)
            count = self._reader.num_records()
        except RuntimeError as error:
            raise ValueError(f"{file.path} is damaged: {error}") from error
        if count != manifest["count"]:
            raise ValueError(
                f"{file.path} opens with {count} records, its manifest says {manifest['count']}: "
                "the file is damaged"
            )

    def __len__(self) -> int:
        return self.manifest["count"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        return unpack_record(self._reader.read([index])[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # For worker processes: the reader itself stays where it was made, and a bucket is not
        # asked again for what stands on the disk.
        return _reopen, (self._file, self.manifest)


def _reopen(file: StoredFile, manifest: dict[str, Any]) -> RecordFile:
    records = RecordFile.__new__(RecordFile)
    records._open(file, manifest, verify=False)
    return records


@contextlib.contextmanager
def record_errors(key: str) -> Iterator[None]:
    """Turns what ArrayRecord raises at a damaged record into SampleError `record_damaged`.

    A system call that failed is no damage: StorageError, which stops the run.
    """
    try:
        yield
    except RuntimeError as error:
        if "() failed" in str(error):  # it names the call, e.g. "pread() failed: ..."
            raise StorageError(f"{key}: {error}") from error
        raise SampleError("record_damaged", str(error), key) from error


def _local_copy(file: StoredFile, sha256: str, verify: bool) -> DataPath:
    if file.path.is_local:
        return file.path
    cache = ShardCache()
    local = cache.find(file)
    if local is not None and verify and file_sha256(stat(local)) != sha256:
        cache.evict(file)
        local = None
    local = local or cache.fetch(file, sha256, wait=True)
    if local is None:
        raise ValueError(
            f"{file.path} has {file.size / 1e9:.3g} GB, and packed records are read from the local "
            f"disk: raise CLIPJAX_SHARD_CACHE, now {cache.budget / 1e9:.3g} GB"
        )
    return local


def read_manifest(path: DataPath) -> dict[str, Any]:
    """Reads the manifest beside a file of packed records."""
    beside = path.parent / (path.name + ".json")
    try:
        content = read_all(beside)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} has no manifest {beside.name} beside it, so its records cannot be counted. "
            "Write it with clipjax.data.packed.records.write_records."
        ) from error
    try:
        manifest = parse_json(content)
    except ValueError as error:
        raise ValueError(f"the manifest {beside} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"the manifest {beside} is not of the format {FORMAT}")
    wrong = [n for n, kind in _MANIFEST.items() if type(manifest.get(n)) is not kind]
    if wrong:
        raise ValueError(f"the manifest {beside} does not say {', '.join(wrong)}: it is damaged")
    return manifest
