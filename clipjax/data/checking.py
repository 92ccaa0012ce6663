"""Reading a whole dataset to find what is damaged, file by file."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.data.captions import flatten
from clipjax.data.named_lists import load_class_names
from clipjax.data.packed_folder import PackedFolder
from clipjax.data.preprocess import decode_image
from clipjax.data.records import read_manifest
from clipjax.data.source import DataSource, SampleError, split_options
from clipjax.data.sources import make_source
from clipjax.data.sources.mix import read_specs
from clipjax.data.sources.tar import text_and_label, wanted_parts
from clipjax.data.storage import StoredFile, find_files
from clipjax.data.tar_index import (
    IMAGE_EXTENSIONS,
    TEXT_EXTENSIONS,
    TarIndex,
    extensions_of,
    make_index,
)
from clipjax.data.tar_indexing import find_index

# Kinds whose `where` is a pattern of files; each is checked by itself.
FILE_KINDS = ("arrayrecord", "parquet", "tar")
TAR_OPTIONS = ("ignore", "class_names")
CHUNK = 1000  # examples of one task, of kinds that have no files


class Finding(NamedTuple):
    """A file, or a part of a dataset, and what is wrong with it."""

    where: str
    what: str


class Checked(NamedTuple):
    """What one task looked at: a file, or a range of examples."""

    examples: int
    findings: list[Finding]


def check(
    spec: str, *, decode: bool = False, workers: int | None = None
) -> Iterator[tuple[Checked, int]]:
    """Verifies a dataset.

    Tar shards are read strictly from end to end, with every caption, and compared with their
    indexes; packed records with their manifests; what `clipjax data pack` wrote with the manifest
    of the folder, which names lost shards, too. Of everything else each example is read.

    Args:
        spec: of the data source.
        decode: whether pictures are decoded, too.
        workers: threads; by default one a core.

    Yields:
        `(checked, tasks in all)` as each task ends.

    Raises:
        ValueError: if the spec is wrong, or names no file.
    """
    tasks = list(_tasks(spec, decode))
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            pending = {pool.submit(task) for task in tasks}
            for done in concurrent.futures.as_completed(pending):
                yield done.result(), len(tasks)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _tasks(spec: str | Mapping[str, Any], decode: bool) -> Iterator[Callable[[], Checked]]:
    options = dict(spec) if isinstance(spec, Mapping) else {"spec": spec}
    text = options.pop("spec")
    if text.startswith("mix:"):
        for part, _ in read_specs(text[4:]):
            yield from _tasks(part, decode)
        return
    text, written = split_options(text)
    options |= written
    options.pop("filter", None)  # of damage it does not matter whether it is used
    kind, _, where = text.partition(":")
    if kind in FILE_KINDS:
        files = find_files(where)
        folders = {file.path.parent for file in files} if kind != "parquet" else ()
        packed = {folder: PackedFolder.open(folder) for folder in folders}
        if kind == "tar":
            one_check = functools.partial(check_tar, **_tar_options(options))
        else:
            one_check = functools.partial(check_file, kind=kind, options=options)
        for file in files:
            beside = packed.get(file.path.parent)
            yield functools.partial(one_check, file, decode=decode, packed=beside)
        for folder in filter(None, packed.values()):
            for lost in folder.lost():
                yield functools.partial(Checked, 0, [Finding(*lost)])
    else:
        source = make_source({**options, "spec": text})
        for start in range(0, len(source), CHUNK):
            places = range(start, min(start + CHUNK, len(source)))
            yield functools.partial(check_examples, source, places, text, decode=decode)


def _tar_options(options: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := options.keys() - {*TAR_OPTIONS}:
        raise ValueError(
            f"tar has no option {', '.join(sorted(unknown))}; it has {', '.join(TAR_OPTIONS)}"
        )
    names = options.get("class_names")
    return {**options, "class_names": load_class_names(names) if isinstance(names, str) else names}


def check_tar(
    shard: StoredFile,
    *,
    ignore: str | Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    decode: bool = False,
    packed: PackedFolder | None = None,
) -> Checked:
    """Reads a tar shard strictly and compares it with its index and manifest, if it has them.

    Args:
        shard: the file.
        ignore: extensions that are not used, as of the source.
        class_names: of the source.
        decode: whether pictures are decoded, too.
        packed: the folder that it was packed to.
    """
    where, ignored = str(shard.path), extensions_of(ignore)
    faults: dict[tuple[str, str], SampleError] = {}

    def look(key: str, extension: str, content: bytes) -> None:
        if extension in TEXT_EXTENSIONS:
            try:
                _check_text(text_and_label({extension: content}, key, class_names), key)
            except SampleError as error:
                faults[key, extension] = error

    try:
        fresh = TarIndex(shard.path, content=make_index(shard, look))
    except (ValueError, OSError) as error:
        return _checked(0, where, [_message(where, error)])
    problems = list(packed.compare(shard, fresh.shard["sha256"])) if packed else []
    known = ignored | {*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS}
    for extension, count in fresh.header["extensions"].items():
        if extension not in known:
            problems.append(f"{count} members have the unknown extension {extension!r}")
    try:
        index = find_index(shard)
        if index is not None and index.content() != fresh.content():
            problems.append(_difference(index, fresh))
    except (ValueError, OSError) as error:
        problems.append(str(error))
    if decode and not problems:
        options = {"ignore": tuple(ignored), "class_names": class_names}
        return check_file(shard, kind="tar", options=options, decode=True)
    unusable: dict[str, list[str]] = collections.defaultdict(list)
    for record in fresh:
        try:
            parts = wanted_parts(record, record.key, ignored, class_names)
            if parts["image"].size == 0:
                raise SampleError("image_empty", "the image has 0 bytes")
            for name in parts:
                if (record.key, name) in faults:
                    raise faults[record.key, name]
        except SampleError as error:
            unusable[error.reason].append(f"{record.key} ({error.message})")
    return _checked(len(fresh), where, problems + _told(unusable, len(fresh)))


def _difference(old: TarIndex, new: TarIndex) -> str:
    """Says how a shard differs from the one that was indexed."""
    if old.shard["bytes"] != new.shard["bytes"] or len(old) != len(new):
        return (
            f"{len(new)} records in {new.shard['bytes']} bytes; its index {old.path} says "
            f"{len(old)} in {old.shard['bytes']}"
        )
    names = []
    for before, now in zip(old, new, strict=True):
        for extension in before.parts.keys() | now.parts.keys():
            if before.key != now.key or before.parts.get(extension) != now.parts.get(extension):
                names.append(f"{before.key}.{extension}")
    if names:
        return f"{len(names)} members are others than in its index {old.path}: {_some(names)}"
    return f"its SHA-256 is another than in its index {old.path}"


def check_file(
    file: StoredFile,
    *,
    kind: str,
    options: Mapping[str, Any],
    decode: bool = False,
    packed: PackedFolder | None = None,
) -> Checked:
    """Reads every example of one file.

    Args:
        file: which.
        kind: of the source that reads it.
        options: of the source.
        decode: whether pictures are decoded, too.
        packed: the folder that it was packed to.
    """
    where = str(file.path)
    try:
        problems = list(packed.compare(file, read_manifest(file.path)["sha256"])) if packed else []
        source = make_source({**options, "spec": f"{kind}:{where}"})
    except Exception as error:  # of any library that reads the format
        return _checked(0, where, [_message(where, error)])
    checked = check_examples(source, range(len(source)), where, decode=decode)
    return _checked(checked.examples, where, problems + [what for _, what in checked.findings])


def check_examples(source: DataSource, places: range, where: str, *, decode: bool) -> Checked:
    """Reads examples; what is unusable is counted, and the first of each reason named."""
    unusable: dict[str, list[str]] = collections.defaultdict(list)
    for place in places:
        key = f"example {place}"
        try:
            example = source[place]
            key = example["key"]
            _check_text(example, key)
            image = example["image"]
            if isinstance(image, bytes) and (decode or not image):
                decode_image(image)
        except SampleError as error:
            unusable[error.reason].append(f"{error.key or key} ({error.message})")
        except Exception as error:  # of any library that reads the format
            unusable["unreadable"].append(f"{key} ({_message(where, error)})")
    return _checked(len(places), where, _told(unusable, len(places)))


def _told(unusable: Mapping[str, list[str]], total: int) -> list[str]:
    """Counts what is unusable by reason, and names the first of each."""
    return [
        f"{len(keys)} of {total} examples are unusable [{reason}]: {keys[0]}"
        + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
        for reason, keys in sorted(unusable.items())
    ]


def _check_text(example: Mapping[str, Any], key: str) -> None:
    """Refuses an example that can neither be trained on nor, having a label, be evaluated."""
    if "label" not in example and not any(flatten(example["text"])):
        raise SampleError("text_empty", "the caption is empty", key)


def _checked(examples: int, where: str, problems: Sequence[str]) -> Checked:
    return Checked(examples, [Finding(where, "; ".join(problems))] if problems else [])


def _message(where: str, error: Exception) -> str:
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__}: {error}"
    return str(error).removeprefix(f"{where} ")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more
