"""Packed records: our own format, one or many ArrayRecord files with their manifests."""

import itertools
import json
import math
from collections.abc import Iterator

from clipjax.data.captions import check_how
from clipjax.data.packed.records import RecordFile, record_errors
from clipjax.data.source import Example, SampleError, embedded_pictures, place_of
from clipjax.data.sources.fields import renamed, text_of
from clipjax.data.storage.files import find_files
from clipjax.data.storage.paths import short_names
from clipjax.data.storage.shard_cache import budget_bytes
from clipjax.files import sha256


class PackedRecords:
    """Image-text pairs in files that `clipjax.data.packed.records.write_records` wrote.

    A key is the file's name and the key that the record has in it.

    Args:
        where: a file, or a pattern such as `DIR/train-{000..015}.array_record`.
        verify: whether every file is hashed at opening; count and size always are checked.
        image_field: which of a record's images to use; by default `image`.

    Raises:
        ValueError: if both names of an option are given, a file or its manifest is missing or
            damaged, or files in a bucket do not fit into the cache of shards.
    """

    def __init__(
        self,
        where: str,
        *,
        verify: bool = True,
        image_field: str | None = None,
        captions: str | None = None,
        blob: str | None = None,
    ):
        check_how(captions, where)
        self.captions = captions
        self._blob = renamed("image_field", image_field, "blob", blob, where) or "image"
        files = find_files(where, suffix=".array_record")
        size, budget = sum(f.size for f in files if not f.path.is_local), budget_bytes()
        if size > budget:  # one would push out the other
            raise ValueError(
                f"{where} has {size / 1e9:.3g} GB, and packed records are read from the local "
                f"disk: set CLIPJAX_SHARD_CACHE, now {budget / 1e9:.3g} GB, to "
                f"{math.ceil(size / 1e9)}GB or more, or pack them by "
                "`clipjax data pack --format tar`"
            )
        self._names = short_names([file.path.url for file in files])
        self._files = [RecordFile(file.path, verify=verify) for file in files]
        self._ends = list(itertools.accumulate(len(file) for file in self._files))
        names = {json.dumps(file.manifest.get("class_names")) for file in self._files}
        if len(names) > 1:
            raise ValueError(f"the files of {where} have different class_names")
        class_names = self._files[0].manifest.get("class_names")
        self.class_names = None if class_names is None else tuple(class_names)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        number, place = place_of(index, self._ends)
        key = f"{self._names[number]}:{place}"
        with record_errors(key):
            try:
                record = self._files[number][place]
            except ValueError as error:
                raise SampleError("record_damaged", str(error), key) from error
        key = f"{self._names[number]}/{record['key']}"
        if self._blob not in record["blobs"]:
            raise SampleError("missing_image", f"the record has no {self._blob!r}", key)
        example: Example = {
            "image": record["blobs"][self._blob],
            "text": text_of(record["text"], key, captions=self.captions),
            "key": key,
        }
        if "label" in record:
            example["label"] = record["label"]
        return example

    def pictures(self) -> Iterator[bytes | None]:
        """Says whose picture each record holds: equal bytes are one."""
        return embedded_pictures(self)

    def fingerprint(self) -> str:
        """SHA-256 of the files' own hashes, in order."""
        hashes = [file.manifest["sha256"] for file in self._files]
        how = [self.captions] if self.captions == "lines" else []
        return sha256(json.dumps([*hashes, self._blob, *how]))
