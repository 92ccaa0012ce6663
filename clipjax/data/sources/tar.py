"""Tar shards in the layout of webdataset and img2dataset, read by offset."""

import bisect
import hashlib
import itertools
import json
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from clipjax.data.benchmark_folder import find_shards, read_beside
from clipjax.data.packed_folder import packed_class_names
from clipjax.data.paths import short_names
from clipjax.data.shard_cache import HotShards
from clipjax.data.source import Example, SampleError
from clipjax.data.sources.fields import text_of
from clipjax.data.storage import StoredFile
from clipjax.data.tar_index import (
    IMAGE_EXTENSIONS,
    TEXT_EXTENSIONS,
    Part,
    Record,
    TarIndex,
    extensions_of,
)
from clipjax.data.tar_indexing import open_indexes

# Files of a record that stand this near to one another are read together.
MAX_GAP = 64 << 10


class TarShards:
    """Image-text pairs in tar archives: `000.jpg`, `000.txt`, `000.json`, `000.cls`.

    A key is a member's name up to the first dot of its last part. The text is that of `.txt`, else
    `captions` (a list, or a map from language to text) or `caption` of `.json`, else the class's
    name. Shards are indexed once, and read by byte range afterwards; the CRC-32 of everything that
    is read is compared with the index.

    Args:
        where: a file, a pattern such as `DIR/{00000..00099}.tar` or `gs://bucket/DIR/*.tar`, or
            the folder of a split as CLIP_benchmark writes it, see `clipjax.data.benchmark_folder`.
        ignore: extensions of members that are not used; another unknown one is an error.
        class_names: names of the numbers in `.cls`; by default those that `clipjax data pack` wrote
            beside the shards, or CLIP_benchmark beside the split. Without any, a record that has no
            caption has the label alone: enough to evaluate with the evaluation's own names, not to
            train.
        language: which caption of a map is used; by default all are.

    Attributes:
        templates: of prompts, where they stand above the folder of a split; else None.

    Raises:
        ValueError: if a shard is missing or damaged, changed since it was indexed, holds a key
            twice, or an unknown member.
    """

    def __init__(
        self,
        where: str,
        *,
        ignore: str | Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        language: str | None = None,
    ):
        shards = find_shards(where)
        self._language = language
        self._ignored = extensions_of(ignore)
        self._indexes = open_indexes(shards)
        for shard, index in zip(shards, self._indexes, strict=True):
            self._check_extensions(shard, index)
        held = {name for index in self._indexes for name in index.header["extensions"]}
        beside = read_beside(shards)
        self.templates = None if beside is None else beside.templates
        if class_names is None and "cls" in held:
            class_names = beside.class_names if beside else packed_class_names(shards)
        self.class_names = None if class_names is None else tuple(class_names)
        if "cls" in held - self._ignored and not held & {"txt", "json"} and not class_names:
            logging.warning(
                "%s: labels without words. To train on them give the names of the classes: "
                "?class_names=FILE, a name a line, or imagenet",
                where,
            )
        self._names = short_names([shard.path.url for shard in shards])
        self._shards = HotShards(shards, [index.shard["sha256"] for index in self._indexes])
        self._ends = list(itertools.accumulate(map(len, self._indexes)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        record = self._indexes[shard].record(index - self._ends[shard] + len(self._indexes[shard]))
        key = f"{self._names[shard]}/{record.key}"
        parts = wanted_parts(record, key, self._ignored, self.class_names)
        files = self._read(shard, parts, key)
        found = text_and_label(files, key, self.class_names)
        if self._language is not None:
            found["text"] = text_of(found["text"], key, self._language)
        return {"image": files["image"], "key": key, **found}

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order, from the indexes alone."""
        for name, index in zip(self._names, self._indexes, strict=True):
            for record in index:
                yield f"{name}/{record.key}"

    def fingerprint(self) -> str:
        """SHA-256 of the shards' own hashes in order, and of what is used of them."""
        digest = hashlib.sha256()
        identity = ["tar/3", self.class_names, sorted(self._ignored)]
        identity += [] if self._language is None else [self._language]
        digest.update(json.dumps(identity).encode())
        for index in self._indexes:
            digest.update(bytes.fromhex(index.shard["sha256"]))
        return digest.hexdigest()

    def _check_extensions(self, shard: StoredFile, index: TarIndex) -> None:
        known = self._ignored | {*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS}
        unknown = [name for name in index.header["extensions"] if name not in known]
        if unknown:
            raise ValueError(
                f"{shard.path} holds {index.header['extensions'][unknown[0]]} members whose "
                f"extension {unknown[0]!r} is unknown. A key ends at the first dot; extensions "
                "that are not needed are declared in the SPEC: ?ignore=npy"
            )

    def _read(self, shard: int, parts: dict[str, Part], key: str) -> dict[str, bytes]:
        for _ in range(2):  # what was damaged on its way is whole the second time
            files = _read_parts(lambda start, size: self._shards.read(shard, start, size), parts)
            wrong = [name for name, part in parts.items() if zlib.crc32(files[name]) != part.crc]
            if not wrong:
                return files
            self._shards.evict(shard)
        raise SampleError("damaged", f"its checksum is wrong: {', '.join(wrong)}", key)


def wanted_parts(
    record: Record, key: str, ignored: Container[str], class_names: Sequence[str] | None
) -> dict[str, Part]:
    """Chooses the files of a record that are read: `image`, and those of its text and label.

    Raises:
        SampleError: `missing_image` or `missing_text`.
    """
    parts = {name: part for name, part in record.parts.items() if name not in ignored}
    image = next((parts[name] for name in IMAGE_EXTENSIONS if name in parts), None)
    if image is None:
        raise SampleError("missing_image", "the shard has no picture of this key", key)
    wanted = {"image": image}
    text = next((name for name in ("txt", "json") if name in parts), None)
    if "cls" in parts and (text is None or class_names is not None):
        wanted["cls"] = parts["cls"]
    if text is not None:
        wanted[text] = parts[text]
    elif "cls" not in wanted:
        raise SampleError("missing_text", "the shard has no caption of this key", key)
    return wanted


def text_and_label(
    files: Mapping[str, bytes], key: str, class_names: Sequence[str] | None
) -> dict[str, Any]:
    """Reads `text`, and `label` where there is one, from a record's `txt`, `json` or `cls`.

    Raises:
        SampleError: `text_encoding`, `json`, `missing_text` or `label`.
    """
    found: dict[str, Any] = {"text": ""}
    if "cls" in files:
        found["label"] = _label(files["cls"], key, class_names)
        if class_names is not None:
            found["text"] = class_names[found["label"]]
    if "txt" in files:
        found["text"] = _decode(files["txt"], key)
    elif "json" in files:
        found["text"] = _caption_of(files["json"], key)
    return found


def _label(content: bytes, key: str, class_names: Sequence[str] | None) -> int:
    text = content.strip().decode("ascii", errors="replace")
    count = 10**9 if class_names is None else len(class_names)
    # No class has a number of ten digits; Python refuses to read one of 5,000.
    if not text.isdecimal() or len(text) > 9 or int(text) >= count:
        raise SampleError("label", f"the class is {text[:20]!r} of {count:,}", key)
    return int(text)


def _read_parts(read_range, parts: dict[str, Part]) -> dict[str, bytes]:
    """Reads files that stand near one another by one request."""
    start = min(part.offset for part in parts.values())
    end = max(part.offset + part.size for part in parts.values())
    if end - start <= sum(part.size for part in parts.values()) + MAX_GAP:
        content = read_range(start, end - start)
        return {
            name: content[part.offset - start : part.offset - start + part.size]
            for name, part in parts.items()
        }
    return {name: read_range(part.offset, part.size) for name, part in parts.items()}


def _decode(content: bytes, key: str) -> str:
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError("text_encoding", f"the caption is not UTF-8: {error}", key) from error


def _caption_of(content: bytes, key: str) -> Any:
    try:
        about = json.loads(content)
        captions, caption = about.get("captions"), about.get("caption")
    except (ValueError, AttributeError, RecursionError) as error:  # also of numbers too long
        raise SampleError("json", f"the .json is unreadable: {error}", key) from error
    try:
        return text_of(captions or caption, key)
    except SampleError:
        if not captions or not caption:
            raise
        return text_of(caption, key)  # the other has nothing but blanks
