"""Any source into shards: tar archives or packed records, the same bytes for the same input.

DIR/00000.tar, 00001.tar, ... hold `shard_size` examples each, in the order of the source. A shard
is written under another name, synced and renamed; beside it, until the end, stands a small file
that says what it holds. So a job that was stopped goes on where it stood; a shard that is not
what was written is made anew. `manifest.json` is written last.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL
from absl import logging

from clipjax.data.packed.folder import FORMAT, JOB, MANIFEST, read_job, read_manifest, read_note
from clipjax.data.packed.records import read_manifest as read_record_manifest
from clipjax.data.packed.records import write_records
from clipjax.data.packing.examples import (
    FORMATS,
    Packing,
    encode,
    members_of,
    record_of,
    write_tar,
)
from clipjax.data.source import DataSource, SampleError, is_filtered, read_example
from clipjax.data.sources.mix import Mix
from clipjax.data.storage.cache import lock
from clipjax.data.storage.file_reader import file_sha256
from clipjax.data.storage.files import local_path, stat, write
from clipjax.data.storage.paths import DataPath
from clipjax.files import TEMPORARY, rename_synced, sweep

LOCK = ".packing.lock"
_LOOKED_AT = 100  # examples, to find out whether the format can hold them


def pack(
    source: DataSource,
    directory: str | os.PathLike[str],
    how: Packing,
    *,
    workers: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Packs a source, several shards at a time.

    Args:
        directory: local; new, or that of the same job, which then goes on. If that was finished,
            shards that are gone or of another size are made anew.

    Yields:
        `(shards done, shards in all)` as each is finished.

    Raises:
        ValueError: if the directory is of another job, in use by another process, damaged, or in
            a bucket, the format cannot hold the examples, or too many of them are unusable.
    """
    directory = local_path(directory)
    identity = _identity(source, how)
    if not _is_finished(directory, identity) and not (directory / JOB).exists():
        # Before the work: whether the format can hold the examples.
        looked_at = range(min(_LOOKED_AT, len(source)))
        next(_usable(source, looked_at, collections.Counter(), how), None)
    directory.mkdir(parents=True, exist_ok=True)
    with lock(directory / LOCK, wait=False) as held:
        if not held:
            raise ValueError(
                f"{directory} is in use: another process packs into it; wait until that has ended"
            )
        # Another process may have finished it meanwhile.
        if not _is_finished(directory, identity) or _reopen(directory, identity):
            yield from _pack(source, directory, identity, how, workers)
        (directory / LOCK).unlink()


def _pack(
    source: DataSource,
    directory: Path,
    identity: dict[str, Any],
    how: Packing,
    workers: int | None,
) -> Iterator[tuple[int, int]]:
    sweep(directory)
    _write_json(directory / JOB, identity)
    bounds = range(0, len(source), how.shard_size)
    suffix = FORMATS[how.format]
    paths = [directory / f"{number:05d}{suffix}" for number in range(len(bounds))]
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            jobs = [
                pool.submit(_pack_shard, source, start, path, how)
                for start, path in zip(bounds, paths, strict=True)
            ]
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                job.result()
                yield done, len(jobs)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    _finish(directory, paths, identity, how)


def _identity(source: DataSource, how: Packing) -> dict[str, Any]:
    options = dataclasses.asdict(how)
    del options["max_bad_fraction"]  # it decides whether there is a result, not which
    return {
        "format": FORMAT,
        "fingerprint": source.fingerprint(),
        "examples": len(source),
        "options": options,
        "pillow": PIL.__version__ if how.resize else None,  # its JPEGs change with its version
        "class_names": None if source.class_names is None else list(source.class_names),
    }


def _is_finished(directory: Path, identity: dict[str, Any]) -> bool:
    for name, read in ((MANIFEST, read_manifest), (JOB, read_job)):
        path = directory / name
        if path.exists():
            found = read(DataPath(str(path)))
            odd = [key for key, value in identity.items() if found.get(key) != value]
            if odd:
                raise ValueError(
                    f"{directory} holds another job: its {odd[0]} is {found.get(odd[0])!r:.80}, "
                    f"here it is {identity[odd[0]]!r:.80}; give another directory"
                )
            if name == MANIFEST:
                return True
    held = [path.name for path in directory.iterdir()] if directory.exists() else []
    if JOB not in held and not all(name.startswith((LOCK, TEMPORARY)) for name in held):
        raise ValueError(f"{directory} is not empty, and no packing job's; give another directory")
    return False


def _reopen(directory: Path, identity: dict[str, Any]) -> bool:
    """Makes a finished job of which shards are lost one that goes on; says whether there are."""
    shards = read_manifest(DataPath(str(directory / MANIFEST)))["shards"]
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    lost = [shard["name"] for shard in shards if sizes.get(shard["name"]) != shard["bytes"]]
    if lost:
        logging.warning("%s lost %s, which is made anew.", directory, ", ".join(lost))
        for shard in shards:
            _write_json(_note_of(directory / shard["name"]), shard)
        _write_json(directory / JOB, identity)
        (directory / MANIFEST).unlink()
    return bool(lost)


def _finish(directory: Path, paths: list[Path], identity: dict[str, Any], how: Packing) -> None:
    shards = [read_note(DataPath(str(_note_of(path)))) for path in paths]
    skipped: collections.Counter[str] = collections.Counter()
    for shard in shards:
        skipped.update(shard["skipped"])
    bad = _bad(skipped)
    if bad.total() > how.max_bad_fraction * identity["examples"]:
        worst = max(shards, key=lambda shard: _bad(shard["skipped"]).total())
        raise ValueError(
            f"{bad.total()} of {identity['examples']} examples are unusable ({dict(bad)}), "
            f"most of them in what became {worst['name']}; allowed is a fraction of "
            f"{how.max_bad_fraction}. Mend the source, or raise max_bad_fraction="
        )
    count = sum(shard["count"] for shard in shards)
    manifest = {**identity, "count": count, "skipped": dict(sorted(skipped.items()))}
    _write_json(directory / MANIFEST, {**manifest, "shards": shards})
    for path in (*map(_note_of, paths), directory / JOB):
        path.unlink()


def _bad(skipped: Mapping[str, int]) -> collections.Counter[str]:
    """What is unusable of what was left out: the rest was left out on purpose."""
    return collections.Counter({k: n for k, n in skipped.items() if not is_filtered(k)})


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.packed")


def _pack_shard(source: DataSource, start: int, path: Path, how: Packing) -> None:
    note = _note_of(path)
    if note.exists() and path.exists():
        if _is_whole(path, how):
            return
        logging.warning("%s is not what was written: it is made anew.", path)
    skipped: collections.Counter[str] = collections.Counter()
    examples = _usable(source, range(start, min(start + how.shard_size, len(source))), skipped, how)
    work = path.with_name(f"{path.name}.tmp")
    if how.format == "tar":
        count = write_tar(work, examples)
        size, digest = work.stat().st_size, file_sha256(stat(DataPath(str(work))))
    else:
        class_names = None if source.class_names is None else list(source.class_names)
        manifest = write_records(work, examples, class_names=class_names)
        count, size, digest = (manifest[key] for key in ("count", "bytes", "sha256"))
        rename_synced(work.with_name(f"{work.name}.json"), path.with_name(f"{path.name}.json"))
    rename_synced(work, path)
    _write_json(
        note,
        {
            "name": path.name,
            "count": count,
            "bytes": size,
            "sha256": digest,
            "skipped": dict(sorted(skipped.items())),
        },
    )


def _is_whole(path: Path, how: Packing) -> bool:
    try:
        shard = read_note(DataPath(str(_note_of(path))))
        records = how.format == "arrayrecord"
        beside = read_record_manifest(DataPath(str(path))) if records else shard
    except ValueError:  # a note, or a manifest of records, that is gone or damaged
        return False
    file = stat(DataPath(str(path)))
    known = (file.size, shard["sha256"]) == (shard["bytes"], beside.get("sha256"))
    return known and file_sha256(file) == shard["sha256"]


def _usable(
    source: DataSource, indices: range, skipped: collections.Counter[str], how: Packing
) -> Iterator[Any]:
    """Gives the packed form of every example that can be used; counts the rest."""
    for index in indices:
        try:
            example = read_example(source, index)
            if how.format == "arrayrecord" and isinstance(source, Mix):
                # Two of its sources may use the same key.
                example = {**example, "key": f"{example['key']}#{index}"}
            extension, image = encode(example["image"], how)
            packed: Any
            if how.format == "tar":
                packed = members_of(index, example, extension, image)
            else:
                packed = record_of(example, image)
        except SampleError as error:
            skipped[error.reason] += 1
            continue
        yield packed


def _write_json(path: Path, value: Any) -> None:
    content = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write(DataPath(str(path)), content.encode("utf-8"))
