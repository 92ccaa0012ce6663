"""Reading a whole dataset to find what is damaged, file by file."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clipjax.data.classes.matching import choose_names
from clipjax.data.classes.named_lists import load_class_names
from clipjax.data.images.preprocess import decode_image
from clipjax.data.inspect.checking_tar import check_tar
from clipjax.data.inspect.findings import (
    Checked,
    Finding,
    check_text,
    checked_file,
    message_of,
)
from clipjax.data.packed.folder import MANIFEST, PackedFolder, packed_class_names
from clipjax.data.packed.records import RecordFile, read_manifest
from clipjax.data.source import DataSource, SampleError, split_options
from clipjax.data.sources import check_options, make_source
from clipjax.data.sources.mix import read_specs, whole_weights
from clipjax.data.sources.tar import TarShards
from clipjax.data.sources.tar_members import TarMembers
from clipjax.data.storage.files import StoredFile, find_files
from clipjax.data.storage.paths import DataPath
from clipjax.data.storage.retrying import StorageError
from clipjax.data.tar.benchmark_folder import find_shards, read_beside

# Kinds whose `where` is a pattern of files, and how these end; each is checked by itself.
FILE_KINDS = {"arrayrecord": ".array_record", "parquet": ".parquet", "tar": ".tar"}
TAR_OPTIONS = tuple(field.name for field in dataclasses.fields(TarMembers))
CHUNK = 1000  # examples of one task, of kinds that have no files


def check(
    spec: str, *, decode: bool = False, workers: int | None = None
) -> Iterator[tuple[Checked, int]]:
    """Verifies a dataset.

    Tar shards are read strictly from end to end, with every caption, and compared with their
    indexes; packed records with their manifests; what `clipjax data pack` wrote with the manifest
    of the folder, which names lost shards, too. Of everything else each example is read. A filter
    is tried; what it would leave out is checked nevertheless.

    Args:
        decode: whether pictures are decoded, too.
        workers: threads; by default one a core.

    Yields:
        `(checked, tasks in all)` as each task ends. A source all of whose examples are left out on
        purpose is a finding of its last task.

    Raises:
        ValueError: if the spec is wrong, or names no file.
        StorageError: if a file could not be read for reasons of the network.
    """
    tasks = list(_tasks(spec, decode))
    waiting = collections.Counter(source for source, _ in tasks)
    used: collections.Counter[str] = collections.Counter()
    left_out: collections.Counter[str] = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            pending = {pool.submit(task): source for source, task in tasks}
            for done in concurrent.futures.as_completed(pending):
                source, checked = pending[done], done.result()
                waiting[source] -= 1
                left = sum(checked.left_out.values())
                left_out[source] += left
                used[source] += checked.examples - left
                if not waiting[source] and left_out[source] and not used[source]:
                    what = f"all {left_out[source]} examples are left out on purpose"
                    checked.findings.append(Finding(source, what))
                yield checked, len(tasks)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _tasks(
    spec: str | Mapping[str, Any], decode: bool
) -> Iterator[tuple[str, Callable[[], Checked]]]:
    """Gives the tasks, each with the source that it belongs to, as it is written."""
    options = dict(spec) if isinstance(spec, Mapping) else {"spec": spec}
    text = options.pop("spec")
    if not isinstance(text, str):
        raise ValueError(f"the data source is {text!r}, expected `kind:where[:split]`")
    if text.startswith("mix:"):
        specs = read_specs(text.removeprefix("mix:"))
        whole_weights([weight for _, weight in specs])  # refuses a mix of none
        for part, _ in specs:
            if str(part["spec"]).startswith("mix:"):
                raise ValueError(f"{text:.80} holds a mix: name its sources one by one")
            yield from _tasks(part, decode)
        return
    text, written = split_options(text)
    options |= written
    rule = options.pop("filter", None)  # of damage it does not matter whether it is used
    kind, _, where = text.partition(":")
    if kind in FILE_KINDS:
        yield from ((str(spec), t) for t in _tasks_of_files(kind, where, options, decode))
    else:
        source = make_source({**options, "spec": text})
        for start in range(0, len(source), CHUNK):
            places = range(start, min(start + CHUNK, len(source)))
            task = functools.partial(check_examples, source, places, text, decode=decode)
            yield str(spec), task
    if rule is not None:
        yield str(spec), functools.partial(check_filter, {**options, "spec": text}, rule)


def _tasks_of_files(
    kind: str, where: str, options: Mapping[str, Any], decode: bool
) -> Iterator[Callable[[], Checked]]:
    files = find_shards(where) if kind == "tar" else find_files(where, suffix=FILE_KINDS[kind])
    packed: dict[DataPath, PackedFolder | None] = {}
    for folder in {file.path.parent for file in files} if kind != "parquet" else ():
        try:
            packed[folder] = PackedFolder.open(folder)
        except ValueError as error:  # its shards are checked by themselves
            manifest = str(folder / MANIFEST)
            yield functools.partial(Checked, 0, [Finding(manifest, message_of(manifest, error))])
    if kind == "tar":
        one_check = functools.partial(check_tar, members=_tar_members(options, files))
    else:
        one_check = functools.partial(check_file, kind=kind, options=options)
    for file in files:
        beside = packed.get(file.path.parent)
        yield functools.partial(one_check, file, decode=decode, packed=beside)
    for found in filter(None, packed.values()):
        for lost in found.lost():
            yield functools.partial(Checked, 0, [Finding(*lost)])


def _tar_members(options: Mapping[str, Any], files: Sequence[StoredFile]) -> TarMembers:
    if unknown := options.keys() - {*TAR_OPTIONS}:
        raise ValueError(
            f"tar has no option {', '.join(sorted(unknown))}; it has {', '.join(TAR_OPTIONS)}"
        )
    options = dict(options)
    if isinstance(options.get("class_names"), str):
        options["class_names"] = load_class_names(options["class_names"])
    check_options(TarShards, options, "data.source")
    beside = read_beside(files)
    own = beside.class_names if beside else packed_class_names(files)
    names, places, _ = choose_names(options.pop("class_names", None), own, "the dataset")
    return TarMembers(**options, class_names=names, places=places)


def check_filter(spec: Mapping[str, Any], rule: Any) -> Checked:
    """Opens a source with its filter; a finding if that cannot be done, or keeps nothing."""
    try:
        make_source({**spec, "filter": rule})
    except StorageError:
        raise
    except (ValueError, OSError) as error:
        return Checked(0, [Finding(f"filter={rule}", str(error))])
    return Checked(0, [])


def check_file(
    file: StoredFile,
    *,
    kind: str,
    options: Mapping[str, Any],
    decode: bool,
    packed: PackedFolder | None,
) -> Checked:
    """Reads every example of one file."""
    where = str(file.path)
    try:
        problems = list(packed.compare(file, read_manifest(file.path)["sha256"])) if packed else []
        if packed and packed.is_empty(file):
            return checked_file(len(RecordFile(file.path)), where, problems)
        source = make_source({**options, "spec": f"{kind}:{where}"})
    except StorageError:  # of the storage, and not of the file
        raise
    except Exception as error:  # of any library that reads the format
        return checked_file(0, where, [message_of(where, error)])
    return check_examples(source, range(len(source)), where, decode=decode, problems=problems)


def check_examples(
    source: DataSource, places: range, where: str, *, decode: bool, problems: Sequence[str] = ()
) -> Checked:
    """Reads examples; what is unusable is counted, and the first of each reason named."""
    unusable: dict[str, list[str]] = collections.defaultdict(list)
    for place in places:
        key = f"example {place}"
        try:
            example = source[place]
            key = example["key"]
            check_text(example, key)
            image = example["image"]
            if isinstance(image, bytes) and (decode or not image):
                decode_image(image)
        except SampleError as error:
            unusable[error.reason].append(f"{error.key or key} ({error.message})")
        except StorageError:
            raise
        except Exception as error:  # of any library that reads the format
            unusable["unreadable"].append(f"{key} ({message_of(where, error)})")
    return checked_file(len(places), where, problems, unusable)
