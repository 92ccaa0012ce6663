"""Finding the index of a shard, or making it: once, by whichever process comes first."""

import concurrent.futures
import contextlib
import os
import random
from collections.abc import Sequence

from absl import logging

from clipjax import faults
from clipjax.data.storage.cache import cache_dir
from clipjax.data.storage.files import StoredFile, list_files, read_all, stat, write
from clipjax.data.storage.paths import DataPath
from clipjax.data.tar.index import SUFFIXES, IndexDamagedError, TarIndex, edges_of, make_index
from clipjax.files import sha256

THREADS = 16


class ShardChangedError(ValueError):
    """A shard is not the one that was indexed."""


def sidecar_of(path: DataPath, key_ends: str = "first_dot") -> DataPath:
    """Where the index of a shard stands: beside it."""
    return path.parent / (path.name + SUFFIXES[key_ends])


def open_indexes(shards: Sequence[StoredFile], key_ends: str = "first_dot") -> list[TarIndex]:
    """Opens the indexes of shards, making those that are missing.

    An index stands beside its shard; where that folder cannot be written to, or is in a bucket,
    it stands in `$CLIPJAX_CACHE/tar_index`, named by the shard's path, size and version. Missing
    ones are made in a random order, and each is looked for again before it is made: so processes
    that start together share the work, and one that comes twice is made twice, to equal bytes.

    Raises:
        ValueError: if a shard is damaged, or changed since it was indexed.
    """
    beside = {
        folder: {file.path.name for file in list_files(folder)}
        for folder in {shard.path.parent for shard in shards}
        if not folder.is_local
    }

    def find(shard: StoredFile) -> TarIndex | None:
        names = beside.get(shard.path.parent)
        may_have = names is None or sidecar_of(shard.path, key_ends).name in names
        return find_index(shard, may_have_sidecar=may_have, unchanged=True, key_ends=key_ends)

    def find_or_make(shard: StoredFile) -> TarIndex:
        return find_index(shard, unchanged=True, key_ends=key_ends) or _make(shard, key_ends)

    with concurrent.futures.ThreadPoolExecutor(THREADS, "clipjax-index") as pool:
        found = dict(zip(shards, pool.map(find, shards), strict=True))
        missing = [shard for shard, index in found.items() if index is None]
        if missing:
            _announce(missing)
            random.shuffle(missing)
            found |= zip(missing, pool.map(find_or_make, missing), strict=True)
    return [index for shard in shards if (index := found[shard]) is not None]


def index_beside(shard: StoredFile, key_ends: str = "first_dot") -> bool:
    """Makes the index of a shard and writes it beside it, in a bucket as well."""
    path = sidecar_of(shard.path, key_ends)
    try:
        check_unchanged(shard, TarIndex(path, content=read_all(path)))
        return False
    except FileNotFoundError:
        write(path, _scan(shard, key_ends))
        return True


def check_unchanged(shard: StoredFile, index: TarIndex) -> None:
    """Compares a shard with its index by size and edges."""
    wrong = None
    if shard.size != index.shard["bytes"]:
        wrong = f"it has {shard.size} bytes, the index says {index.shard['bytes']}"
    elif edges_of(shard) != index.shard["edges"]:
        wrong = "its first or last 64 KiB are others"
    if wrong:
        raise ShardChangedError(
            f"{shard.path} changed since it was indexed: {wrong}. If that is intended, delete "
            f"{index.path}; else fetch the shard again"
        )


def find_index(
    shard: StoredFile,
    *,
    may_have_sidecar: bool = True,
    unchanged: bool = False,
    key_ends: str = "first_dot",
) -> TarIndex | None:
    """Opens the index of a shard where there is one.

    Args:
        may_have_sidecar: False where it is known that none stands beside the shard.
        unchanged: whether the shard has to be the one that was indexed, by size and edges.
    """
    beside, cached = sidecar_of(shard.path, key_ends), _cached(shard, key_ends)
    if may_have_sidecar and beside.is_local:
        with contextlib.suppress(FileNotFoundError):
            index = TarIndex(beside)
            if unchanged:
                check_unchanged(shard, index)
            return index
    try:
        return TarIndex(cached)  # its name says which version of the shard it belongs to
    except FileNotFoundError:
        pass
    except IndexDamagedError as error:
        logging.warning("%s.", error)
        return None
    if may_have_sidecar and not beside.is_local:
        with contextlib.suppress(FileNotFoundError):
            content = read_all(beside)
            index = TarIndex(beside, content=content)
            if unchanged:
                check_unchanged(shard, index)
                write(cached, content)
                return TarIndex(cached)
            return index
    return None


def _make(shard: StoredFile, key_ends: str) -> TarIndex:
    content, path = _scan(shard, key_ends), sidecar_of(shard.path, key_ends)
    if path.is_local:
        try:
            write(path, content)
            return TarIndex(path)
        except OSError as error:
            logging.log_first_n(logging.INFO, "Indexes go to %s: %s", 1, cache_dir(), error)
    path = _cached(shard, key_ends)
    write(path, content)
    return TarIndex(path)


def _scan(shard: StoredFile, key_ends: str) -> bytes:
    faults.point("index.shard")
    content = make_index(shard, key_ends=key_ends)
    if (now := stat(shard.path)) != shard:
        raise ShardChangedError(
            f"{shard.path} changed while it was indexed: it had {shard.size} bytes and the version "
            f"{shard.version}, now {now.size} and {now.version}"
        )
    return content


def _cached(shard: StoredFile, key_ends: str) -> DataPath:
    path = os.path.abspath(shard.path.url) if shard.path.is_local else shard.path.url
    identity = "\n".join((path, str(shard.size), shard.version))
    name = sha256(identity)[:40] + SUFFIXES[key_ends]
    return DataPath(str(cache_dir() / "tar_index" / name))


def _announce(missing: Sequence[StoredFile]) -> None:
    total = sum(shard.size for shard in missing)
    logging.info("Indexing %d tar shards, %.2f GB, once.", len(missing), total / 1e9)
    if any(not shard.path.is_local for shard in missing):
        logging.info(
            "Every host reads shards in a bucket from end to end for that. `clipjax data index "
            "SPEC` does it once for all and writes the indexes beside them."
        )
