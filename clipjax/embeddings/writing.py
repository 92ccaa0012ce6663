"""Embeddings of a dataset's pictures, in shards: the same files however often it was stopped.

DIR/00000.parquet, 00001.parquet, ... hold the pictures of `shard_size` examples each, in the order
of the source; `index.json`, which is whole when all of them are there, says of what they are.
Several processes share the shards: each embeds its own on its own devices.
"""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from absl import logging

from clipjax.config import to_plain
from clipjax.data.source import DataSource, is_filtered
from clipjax.data.storage.cache import lock
from clipjax.data.storage.files import local_path
from clipjax.embeddings.index import FORMAT, INDEX, Index, read_index, shard_names
from clipjax.embeddings.model import about_model
from clipjax.embeddings.shards import DTYPES, FORMS, Shard, find_shard, write_shard
from clipjax.files import sha256, sweep, write_file
from clipjax.inference.opened import Opened
from clipjax.inference.scoring import embed_source
from clipjax.processes.distributed import agree, gather, is_lead
from clipjax.ranges import FRACTION, Choice, Rule, whole
from clipjax.redaction import redact

LOCK = ".embedding.lock"
_OF_TEXTS = ("missing_text", "text_empty", "text_encoding")  # reasons that are no picture's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storing:
    """How embeddings are stored.

    Attributes:
        form: `parquet`, or `npy`: an array of NumPy beside a Parquet file of the rest.
        dtype: that embeddings are stored in, `float32` or `float16`.
        shard_size: examples a shard.
        max_bad_fraction: of the examples that may be unusable.
    """

    form: str = "parquet"
    dtype: str = "float32"
    shard_size: int = 10_000
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        rules: dict[str, Rule] = {
            "form": Choice(FORMS),
            "dtype": Choice(DTYPES),
            "shard_size": whole(1),
            "max_bad_fraction": FRACTION,
        }
        for name, rule in rules.items():
            rule.check(getattr(self, name), name)


def identity_of(
    opened: Opened, source: DataSource, spec: str, how: Storing, checkpoint: str
) -> dict[str, Any]:
    """What a folder of embeddings is of, as plain JSON; `checkpoint` is only where it was."""
    model = opened.model
    return to_plain(
        {
            "format": FORMAT,
            "model": about_model(opened, checkpoint),
            "preprocess": {
                **model.spec["preprocess"],
                "image_size": model.spec["image_size"],
                "pixels": model.pixels,
            },
            "data": {
                "spec": redact(spec),
                "fingerprint": source.fingerprint(),
                "examples": len(source),
            },
            "stored": {"form": how.form, "dtype": how.dtype, "shard_size": how.shard_size},
        }
    )


def embed(
    opened: Opened,
    source: DataSource,
    directory: str | os.PathLike[str],
    how: Storing,
    *,
    spec: str,
    checkpoint: str,
    threads: int = 4,
    see: Callable[[int], object] = lambda examples: None,
) -> Index:
    """Embeds all pictures of a source, each exactly once; a collective.

    Args:
        opened: the model, on devices of this process alone.
        source: the pictures.
        directory: local, and seen by all processes; new, or of the same job, which then goes on.
        how: the form of what is written.
        spec: of the source, for whoever looks for the pictures.
        checkpoint: path of the model, for whoever searches by texts.
        threads: that read and decode.
        see: called with the number of examples that are done, those of before included.

    Returns:
        The index, open.

    Raises:
        ValueError: the directory is of another job or in use, or too many pictures are unusable.
    """
    directory = local_path(directory)
    identity = identity_of(opened, source, spec, how, checkpoint)
    agree({"checkpoint": opened.sha256 or "", "data": source.fingerprint()})
    with _held(directory, identity):
        job = _job(identity)
        stems = [directory / name for name in shard_names(len(source), how.shard_size)]
        _embed_shards(opened, source, stems, how, job, threads, see)
        gather(None)  # all shards are there
        if is_lead():
            _finish(directory, identity, job, how)
        gather(None)
    return Index.open(directory)


@contextlib.contextmanager
def _held(directory: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Holds the folder against other runs, by the lead; all processes raise together."""
    with contextlib.ExitStack() as stack:
        problem = None
        if is_lead():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                if not stack.enter_context(lock(directory / LOCK, wait=False)):
                    raise ValueError(
                        f"{directory} is in use: another process embeds into it; wait until that "
                        "has ended"
                    )
                _prepare(directory, identity)
            except (ValueError, OSError) as error:
                problem = str(error)
        problem = gather(problem)[0]
        if problem:
            raise ValueError(problem)
        yield
        if is_lead():
            (directory / LOCK).unlink()


def _prepare(directory: Path, identity: dict[str, Any]) -> None:
    """Checks that the folder is new or of this job, and clears what killed processes left."""
    path = directory / INDEX
    if path.exists():
        found = read_index(path)
        for name, wanted in _flat(identity).items():
            have = _flat(found).get(name)
            if have != wanted:
                raise ValueError(
                    f"{directory} holds other embeddings: their {name} is {have!r:.80}, here it is "
                    f"{wanted!r:.80}; give another directory"
                )
    elif others := [p.name for p in directory.iterdir() if not p.name.startswith(".")]:
        raise ValueError(
            f"{directory} holds {others[0]} and no {INDEX}: give a new directory, or that of "
            "embeddings that were begun"
        )
    sweep(directory)
    if not path.exists():
        _write(path, {**identity, "complete": False})


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by their paths, without where the checkpoint and the data were: they may move.

    Of the hints, what makes another model is in its SHA-256; the files that they name may move.
    """
    parts = {part: identity[part] for part in ("model", "preprocess", "data", "stored")}
    fields = {
        f"{part}.{name}": value
        for part, of_part in parts.items()
        if isinstance(of_part, Mapping)
        for name, value in of_part.items()
    }
    moving = {"model.checkpoint", "model.hints", "data.spec"}
    return {name: value for name, value in fields.items() if name not in moving}


def _job(identity: Mapping[str, Any]) -> str:
    return sha256(json.dumps([FORMAT, _flat(identity)], sort_keys=True))


def _embed_shards(
    opened: Opened,
    source: DataSource,
    stems: Sequence[Path],
    how: Storing,
    job: str,
    threads: int,
    see: Callable[[int], object],
) -> None:
    """Embeds the shards of this process that are not there yet."""
    mine = range(jax.process_index(), len(stems), jax.process_count())
    size = how.shard_size
    bounds = {n: range(n * size, min((n + 1) * size, len(source))) for n in mine}
    found = {number: find_shard(stems[number], job) for number in mine}
    missing = {number: bounds[number] for number in mine if found[number] is None}
    total = sum(map(len, bounds.values()))
    before = total - sum(map(len, missing.values()))
    bad = sum((_bad(shard.skipped) for shard in found.values() if shard), Counter[str]())
    if before:
        logging.info("%d of %d shards are there already", len(mine) - len(missing), len(mine))
    see(before)
    if not missing:
        return
    done, started = before, time.monotonic()
    stream = embed_source(opened.model, source, shards=missing.values(), threads=threads)
    write = functools.partial(
        write_shard,
        form=how.form,
        dtype=how.dtype,
        embed_dim=opened.model.spec["embed_dim"],
        job=job,
    )
    # One thread writes a shard while the devices go on with the next.
    with ThreadPoolExecutor(1, thread_name_prefix="writing_shards") as pool:
        writing: Future[Shard] | None = None
        for number, parts in itertools.groupby(stream, lambda part: part.rows.start // size):
            shard = []
            for part in parts:
                shard.append(part)
                bad += _bad(part.bad)
                _check_bad(bad, len(source), how)
                see(len(part.rows))
            if writing is not None:
                writing.result()
            writing = pool.submit(write, stems[number], shard)
            done += len(bounds[number])
            rate = (done - before) / (time.monotonic() - started)
            left = datetime.timedelta(seconds=round((total - done) / rate))
            logging.info("%d of %d pictures, %.1f a second, %s left", done, total, rate, left)
        if writing is not None:
            writing.result()


def _bad(skipped: Mapping[str, int]) -> Counter[str]:
    """What is unusable of what was left out: the rest was left out on purpose."""
    return Counter({reason: n for reason, n in skipped.items() if not is_filtered(reason)})


def _check_bad(bad: Counter[str], examples: int, how: Storing) -> None:
    if bad.total() > how.max_bad_fraction * examples:
        alone = "" if bad.keys().isdisjoint(_OF_TEXTS) else ", take pictures:DIR, without captions"
        raise ValueError(
            f"{bad.total()} of {examples} examples are unusable ({dict(bad)}); allowed is a "
            f"fraction of {how.max_bad_fraction}. Mend the source{alone}, or raise "
            "--max_bad_fraction; what is embedded is kept"
        )


def _finish(directory: Path, identity: dict[str, Any], job: str, how: Storing) -> None:
    """Writes the index of all shards."""
    examples = identity["data"]["examples"]
    names = shard_names(examples, how.shard_size)
    shards = [find_shard(directory / name, job) for name in names]
    lost = [name for name, shard in zip(names, shards, strict=True) if shard is None]
    if lost:
        raise ValueError(
            f"{directory} has no shard {lost[0]}, which another process wrote: give all processes "
            "one folder that they share"
        )
    skipped: Counter[str] = Counter()
    for shard in filter(None, shards):
        skipped.update(shard.skipped)
    _check_bad(_bad(skipped), examples, how)
    told = [shard._asdict() for shard in filter(None, shards)]
    count = sum(shard["pictures"] for shard in told)
    if not count:
        raise ValueError(f"none of the {examples} examples can be used: {dict(skipped)}")
    about = {"complete": True, "count": count, "skipped": dict(sorted(skipped.items()))}
    _write(directory / INDEX, {**identity, **about, "shards": told})


def _write(path: Path, value: dict[str, Any]) -> None:
    write_file(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
