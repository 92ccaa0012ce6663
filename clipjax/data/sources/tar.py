"""Tar shards in the layout of webdataset and img2dataset, read by offset."""

import concurrent.futures
import dataclasses
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from clipjax.data.classes.matching import choose_names
from clipjax.data.packed.folder import packed_class_names
from clipjax.data.source import Example, SampleError, place_of
from clipjax.data.sources.fields import group_fields
from clipjax.data.sources.tar_members import TarMembers
from clipjax.data.storage.paths import short_names
from clipjax.data.storage.shard_cache import HotShards
from clipjax.data.tar.benchmark_folder import find_shards, read_beside
from clipjax.data.tar.index import Part
from clipjax.data.tar.indexing import open_indexes
from clipjax.data.tar.uids import uids_of
from clipjax.files import sha256

# Files of a record that stand this near to one another are read together.
MAX_GAP = 64 << 10
_THREADS = 16


class TarShards:
    """Image-text pairs in tar archives: `000.jpg`, `000.txt`, `000.json`, `000.cls`.

    A key is a member's name up to the first dot of its last part, what follows is the extension.
    The text is that of `.txt`, else `captions` (a list, or a map from language to text) or
    `caption` of `.json`, else the class's name. Shards are indexed once, and read by byte range
    afterwards; the CRC-32 of everything that is read is compared with the index.

    Args:
        where: a file, a pattern such as `DIR/{00000..00099}.tar` or `gs://bucket/DIR/*.tar`, or
            a split's folder as CLIP_benchmark writes it, see `clipjax.data.tar.benchmark_folder`.
        image_field: the extension of the picture, as `input.jpg` of `000.input.jpg`; `input` is any
            of `input.jpg`, `input.png`, ...; by default `jpg`, `png`, ...
        text_field: the extension of the caption, as `long.txt`, or a field of a JSON member, as
            `json:title` or `syn.json:syn_text`. Several become a map from what is given here.
        ignore: extensions of members that are not used; another unknown one is an error.
        class_names: names of the numbers in `.cls`; by default those that `clipjax data pack` wrote
            beside the shards, or CLIP_benchmark beside the split, with which others are matched as
            `match_classes` says. Without any, a record that has no
            caption has the label alone: enough to evaluate with the evaluation's own names, not to
            train.
        group_field: what an evaluation counts by: names of the first entries of `.npy`, in their
            order, as WILDS has its metadata (`region,year`), else fields of `.json`.
        captions: `lines` makes each line of a text a caption; `whole`, the default but where
            CLIP_benchmark says that the data is for retrieval, does not.
        key_ends: `first_dot`, or `last_dot` where keys hold dots; extensions then hold none.

    Attributes:
        matched: how the classes found `class_names`, where these are given; see DataSource.
        task: `retrieval` or `zero_shot` where CLIP_benchmark's files say it and nothing here serves
            the other; else None.
        templates: prompt templates, where they stand above the folder of a split; else None.

    Raises:
        ValueError: if a shard is missing or damaged, changed since it was indexed, holds a key
            twice, an unknown member, or none of a field that is given.
    """

    def __init__(
        self,
        where: str,
        *,
        image_field: str | None = None,
        text_field: str | Sequence[str] | None = None,
        ignore: str | Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        first_label: int | None = None,
        group_field: str | Sequence[str] = (),
        language: str | None = None,
        captions: str | None = None,
        key_ends: str = "first_dot",
    ):
        shards = find_shards(where)
        beside = read_beside(shards)
        if captions is None and beside is not None and beside.kind == "retrieval":
            captions = "lines"  # as CLIP_benchmark reads its own
        self.captions, self.numbered_from = captions, first_label
        self.several = beside is not None and beside.kind == "multilabel"
        self.group_names = group_fields(group_field)
        members = TarMembers(
            image_field=image_field,
            text_field=text_field,
            ignore=ignore,
            first_label=first_label,
            language=language,
            captions=captions,
            key_ends=key_ends,
            group_names=self.group_names,
            several=self.several,
        )
        self.indexes = open_indexes(shards, key_ends)
        for shard, index in zip(shards, self.indexes, strict=True):
            members.check_extensions(index.header["extensions"], str(shard.path))
        held = {name for index in self.indexes for name in index.header["extensions"]}
        hidden = sum(index.header.get("hidden", 0) for index in self.indexes)
        if hidden:
            logging.info("%s: %d members are not used, macOS's own, such as ._0.jpg", where, hidden)
        members.check_held(held, where)
        self.task = None
        if beside is not None and beside.kind == "retrieval" and "cls" not in held:
            self.task = "retrieval"
        elif self.several or (beside is not None and held.isdisjoint(members.text_extensions)):
            self.task = "zero_shot"
        self.templates = None if beside is None else beside.templates
        own = None
        if "cls" in held or self.several:
            own = beside.class_names if beside else packed_class_names(shards)
        self.class_names, places, self.matched = choose_names(class_names, own, f"tar:{where}")
        self._members = dataclasses.replace(members, class_names=self.class_names, places=places)
        self._names = short_names([shard.path.url for shard in shards])
        self._files = tuple(shards)
        self._shards = HotShards(shards, [index.shard["sha256"] for index in self.indexes])
        self._ends = list(itertools.accumulate(map(len, self.indexes)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        shard, place = place_of(index, self._ends)
        record = self.indexes[shard].record(place)
        key = f"{self._names[shard]}/{record.key}"
        files = self._read(shard, self._members.wanted(record, key), key)
        found = self._members.finish(self._members.text_and_label(files, key), key)
        example: Any = {"image": files["image"], "key": key, **found}
        return example

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order, from the indexes alone."""
        for name, index in zip(self._names, self.indexes, strict=True):
            for record in index:
                yield f"{name}/{record.key}"

    def uids(self) -> Iterator[Any]:
        """Gives the field `uid` of each record's `.json`, read once and kept, see `tar.uids`."""
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            yield from itertools.chain.from_iterable(pool.map(uids_of, self._files, self.indexes))

    def pictures(self) -> Iterator[tuple[int, int] | None]:
        """Says whose picture each record holds: one of as many bytes and the same CRC-32, by the
        indexes alone."""
        for index in self.indexes:
            for record in index:
                image = self._members.image_of(record)
                yield None if image is None else (image.size, image.crc)

    def fingerprint(self) -> str:
        """SHA-256 of the shards' own hashes in order, and of what is used of them."""
        members = self._members
        identity = ["tar/3", self.class_names, sorted(members.ignored)]
        identity += [] if members.language is None else [members.language]
        identity += members.identity()
        shards = (bytes.fromhex(index.shard["sha256"]) for index in self.indexes)
        return sha256(json.dumps(identity), *shards)

    def _read(self, shard: int, parts: dict[str, Part], key: str) -> dict[str, bytes]:
        for _ in range(2):  # what was damaged on its way is whole the second time
            files = _read_parts(lambda start, size: self._shards.read(shard, start, size), parts)
            wrong = [name for name, part in parts.items() if zlib.crc32(files[name]) != part.crc]
            if not wrong:
                return files
            self._shards.evict(shard)
        raise SampleError("damaged", f"its checksum is wrong: {', '.join(wrong)}", key)


def _read_parts(
    read_range: Callable[[int, int], bytes], parts: dict[str, Part]
) -> dict[str, bytes]:
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
