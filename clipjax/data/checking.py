"""Reading a whole dataset to find what is damaged, file by file."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.data.preprocess import decode_image
from clipjax.data.source import DataSource, SampleError, split_options
from clipjax.data.sources import make_source
from clipjax.data.sources.mix import read_specs
from clipjax.data.storage import StoredFile, find_files
from clipjax.data.tar_index import (
    IMAGE_EXTENSIONS,
    TEXT_EXTENSIONS,
    TarIndex,
    extensions_of,
    make_index,
)
from clipjax.data.tar_indexing import find_index

# Kinds whose `where` is a pattern of files; each is opened by itself.
FILE_KINDS = ("arrayrecord", "parquet")
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

    Tar shards are read strictly from end to end and compared with their indexes; packed records
    with their manifests; of everything else each example is read.

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
    if kind == "tar":
        for shard in find_files(where):
            yield functools.partial(check_tar, shard, decode=decode, **options)
    elif kind in FILE_KINDS:
        for file in find_files(where):
            one = {**options, "spec": f"{kind}:{file.path}"}
            yield functools.partial(_check_file, one, decode)
    else:
        source = make_source({**options, "spec": text})
        for start in range(0, len(source), CHUNK):
            places = range(start, min(start + CHUNK, len(source)))
            yield functools.partial(check_examples, source, places, text, decode=decode)


def check_tar(
    shard: StoredFile, *, ignore: str | Sequence[str] = (), decode: bool = False, **options: Any
) -> Checked:
    """Reads a tar shard strictly and compares it with its index, if it has one.

    Args:
        shard: the file.
        ignore: extensions that are not used, as of the source.
        decode: whether pictures are decoded, too.
        **options: more options of the source.
    """
    where, ignored = str(shard.path), extensions_of(ignore)
    try:
        fresh = TarIndex(shard.path, content=make_index(shard))
    except (ValueError, OSError) as error:
        return Checked(0, [Finding(where, _without(where, error))])
    findings = [Finding(where, what) for what in _incomplete(fresh, ignored)]
    try:
        index = find_index(shard)
        if index is not None and index.content() != fresh.content():
            findings.append(Finding(where, _difference(index, fresh)))
    except (ValueError, OSError) as error:
        findings.append(Finding(where, str(error)))
    if decode and not findings:
        source = {**options, "spec": f"tar:{where}", "ignore": tuple(ignored)}
        findings += _check_file(source, decode).findings
    return Checked(len(fresh), findings)


def _incomplete(index: TarIndex, ignored: set[str]) -> Iterator[str]:
    known = ignored | {*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS}
    for extension, count in index.header["extensions"].items():
        if extension not in known:
            yield f"{count} members have the unknown extension {extension!r}"
    for kind, what in (("without_image", "picture"), ("without_text", "caption")):
        if index.header[kind]:
            wanted = IMAGE_EXTENSIONS if what == "picture" else TEXT_EXTENSIONS
            keys = [record.key for record in index if record.parts.keys().isdisjoint(wanted)]
            yield f"{len(keys)} of {len(index)} records have no {what}: {_some(keys)}"


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


def _check_file(options: Mapping[str, Any], decode: bool) -> Checked:
    where = options["spec"].partition(":")[2]
    try:
        source = make_source(options)
    except (ValueError, OSError) as error:
        return Checked(0, [Finding(where, _without(where, error))])
    return check_examples(source, range(len(source)), where, decode=decode)


def check_examples(source: DataSource, places: range, where: str, *, decode: bool) -> Checked:
    """Reads examples; what is unusable is reported once a reason."""
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for place in places:
        key = f"example {place}"
        try:
            example = source[place]
            key = example["key"]
            if decode and isinstance(example["image"], bytes):
                decode_image(example["image"])
        except SampleError as error:
            reasons[error.reason].append(f"{error.key or key} ({error.message})")
        except (ValueError, OSError) as error:
            reasons["unreadable"].append(f"{key} ({error})")
    findings = []
    for reason, keys in sorted(reasons.items()):
        what = f"{len(keys)} of {len(places)} examples are unusable [{reason}]: {_some(keys)}"
        findings.append(Finding(where, what))
    return Checked(len(places), findings)


def _without(where: str, error: Exception) -> str:
    return str(error).removeprefix(f"{where} ")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more
