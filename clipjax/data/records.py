"""Packed records: image-text pairs in an ArrayRecord file with a manifest beside it.

A record is `b"CJX1"`, the length of its header (little-endian u32), the header as JSON
(`key`, `text`, `label`, `meta`, `blobs`: name -> length) and the blobs one after the other. Nothing
in it can run code. The manifest, `FILE.json`, holds count, size and SHA-256: ArrayRecord itself
opens a truncated file without complaint and says that it has 0 records.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from array_record.python import array_record_module
from etils import epath

MAGIC = b"CJX1"
FORMAT = "clipjax.records/1"


def pack_record(
    *,
    key: str,
    text: tuple[str, ...],
    blobs: Mapping[str, bytes],
    label: int | None = None,
    meta: Mapping[str, Any] | None = None,
) -> bytes:
    """Serialises one image-text pair; `blobs` holds the encoded image under `image`."""
    header = {"key": key, "text": list(text), "blobs": {k: len(v) for k, v in blobs.items()}}
    if label is not None:
        header["label"] = label
    if meta:
        header["meta"] = dict(meta)
    packed = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return b"".join((MAGIC, struct.pack("<I", len(packed)), packed, *blobs.values()))


def unpack_record(record: bytes) -> dict[str, Any]:
    """Reads one record: its header's fields, and `blobs` as name -> bytes.

    Raises:
        ValueError: if it is no record of this format, or is cut short.
    """
    if record[:4] != MAGIC or len(record) < 8:
        raise ValueError(f"this is not a packed record: it starts with {record[:4]!r}")
    start = 8 + struct.unpack("<I", record[4:8])[0]
    header = json.loads(record[8:start])
    blobs = {}
    for name, length in header["blobs"].items():
        blobs[name], start = record[start : start + length], start + length
    if start != len(record):
        raise ValueError(f"record {header['key']!r} has {len(record)} bytes, expected {start}")
    return {**header, "blobs": blobs}


def write_records(path: Path, records: Iterable[bytes], **about: Any) -> dict[str, Any]:
    """Writes records and their manifest, synced to disk; not atomic by itself.

    Args:
        path: the ArrayRecord file to write; the manifest goes to `path` + `.json`.
        records: packed records.
        **about: more fields of the manifest, e.g. `class_names`.

    Returns:
        The manifest.
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
        "sha256": file_sha256(path),
        **about,
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    path.with_name(path.name + ".json").write_text(text, encoding="utf-8")
    for written in (path, path.with_name(path.name + ".json")):
        sync(written)
    return manifest


class RecordFile:
    """Random access to a file of packed records that was checked against its manifest.

    Args:
        path: the ArrayRecord file.
        verify: whether the whole file is hashed; count and size are always checked.

    Raises:
        ValueError: if file or manifest is missing or damaged.
    """

    def __init__(self, path: str | Path, *, verify: bool = True):
        self.path = epath.Path(path)
        self.manifest = read_manifest(self.path)
        size = self.path.stat().length
        if size != self.manifest["bytes"]:
            raise ValueError(f"{path} has {size} bytes, its manifest says {self.manifest['bytes']}")
        if verify and file_sha256(self.path) != self.manifest["sha256"]:
            raise ValueError(f"{path} is damaged: its SHA-256 is not the one of its manifest")
        # Without read-ahead: the order of reading is a permutation.
        options = "readahead_buffer_size:0,max_parallelism:0"
        self._reader = array_record_module.ArrayRecordReader(str(path), options)
        count = self._reader.num_records()
        if count != self.manifest["count"]:
            raise ValueError(
                f"{path} opens with {count} records, its manifest says {self.manifest['count']}: "
                "the file is damaged"
            )

    def __len__(self) -> int:
        return self.manifest["count"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        return unpack_record(self._reader.read([index])[0])


def read_manifest(path: epath.Path) -> dict[str, Any]:
    """Reads the manifest beside a file of packed records."""
    beside = path.parent / (path.name + ".json")
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    if not beside.exists():
        raise ValueError(
            f"{path} has no manifest {beside.name} beside it, so its records cannot be counted. "
            "Write it with clipjax.data.records.write_records."
        )
    try:
        manifest = json.loads(beside.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the manifest {beside} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"the manifest {beside} is not of the format {FORMAT}")
    return manifest


def file_sha256(path: Path | epath.Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Waits until a file or directory is on disk: a rename may otherwise outlive its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
