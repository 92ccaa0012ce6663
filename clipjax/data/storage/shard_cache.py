"""Hot shards of a bucket on the local disk, under a budget, shared by the processes of a host.

A shard is read by byte ranges until as much was read of it as it is large; then it is worth
fetching whole. What was used least recently makes room for it, but nothing that was used since
the shard was first asked for: where all shards are read alike and do not fit, those that came
first stay, and none is fetched in vain.
"""

import contextlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from clipjax.data.storage.cache import cache_dir, lock
from clipjax.data.storage.file_reader import HashingReader
from clipjax.data.storage.files import StoredFile, read
from clipjax.data.storage.paths import DataPath
from clipjax.data.storage.retrying import StorageError, TruncatedError
from clipjax.files import rename_synced, sha256

DEFAULT_BUDGET = "10GB"
STAMP_S = 5.0  # how exactly the time of the last use is kept
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_PIECE = 8 << 20


def budget_bytes() -> int:
    """The size of the cache: `$CLIPJAX_SHARD_CACHE`, e.g. `200GB`; 0 switches it off."""
    text = os.environ.get("CLIPJAX_SHARD_CACHE") or DEFAULT_BUDGET
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?B?)", text.strip().upper())
    if found is None or (found[2] or "") not in _UNITS:
        raise ValueError(f"CLIPJAX_SHARD_CACHE is {text!r}, expected a size such as 200GB, or 0")
    return int(float(found[1]) * _UNITS[found[2]])


class ShardCache:
    """Whole shards in a directory."""

    def __init__(self, directory: Path | None = None, budget: int | None = None):
        self.directory = directory or cache_dir() / "shards"
        self.budget = budget_bytes() if budget is None else budget

    def find(self, shard: StoredFile) -> DataPath | None:
        """Looks a shard up, and notes that it was used; a copy of another size is removed."""
        path = self._path(shard)
        try:
            found = path.stat()
            if found.st_size != shard.size:
                self.evict(shard)
                return None
            if time.time() - found.st_mtime > STAMP_S:
                os.utime(path)
        except FileNotFoundError:
            return None
        return DataPath(str(path))

    def evict(self, shard: StoredFile) -> None:
        """Removes the copy of a shard, which is damaged."""
        with contextlib.suppress(FileNotFoundError):
            self._path(shard).unlink()
            logging.warning("The cached copy of %s was damaged: it is removed.", shard.path)

    def fetch(
        self, shard: StoredFile, sha256: str, *, asked: float | None = None, wait: bool = False
    ) -> DataPath | None:
        """Brings a shard to the disk, whole and checked, or not at all.

        Args:
            asked: the time since when it is wanted; shards that were used later stay. None: any
                other shard may go.

        Returns:
            Where it stands; None if there is no room, or another process is fetching.

        Raises:
            ValueError: if its SHA-256 is another.
        """
        if shard.size > self.budget:
            return None
        self.directory.mkdir(parents=True, exist_ok=True)
        with lock(self.directory / "lock", wait=wait) as held:
            if not held:
                return None
            if found := self.find(shard):
                return found
            for left_over in self.directory.glob(".*.part"):
                left_over.unlink()  # of a process that was killed: this one holds the lock
            if not self._make_room(shard.size, asked):
                return None
            return self._download(shard, sha256)

    def _path(self, shard: StoredFile) -> Path:
        identity = "\n".join((str(shard.path), str(shard.size), shard.version))
        return self.directory / (sha256(identity)[:40] + ".shard")

    def _make_room(self, size: int, asked: float | None) -> bool:
        entries = sorted(
            (p.stat().st_mtime, p.stat().st_size, p) for p in self.directory.glob("*.shard")
        )
        excess = sum(length for _, length, _ in entries) + size - self.budget
        leaving = []
        for used, length, path in entries:
            if excess <= 0:
                break
            # Stamps are up to STAMP_S old.
            if asked is not None and used + STAMP_S >= asked:
                return False
            leaving.append(path)
            excess -= length
        for path in leaving:
            path.unlink(missing_ok=True)
        return True

    def _download(self, shard: StoredFile, sha256: str) -> DataPath:
        path = self._path(shard)
        part = path.with_name(f".{path.name}.part")
        reader = HashingReader(shard, block=_PIECE)
        try:
            with part.open("wb") as file:
                while piece := reader.read(_PIECE):
                    file.write(piece)
            if reader.sha256() != sha256:
                raise ValueError(f"{shard.path} is damaged: its SHA-256 is another than expected")
            rename_synced(part, path)
        finally:
            part.unlink(missing_ok=True)
        return DataPath(str(path))


class HotShards:
    """Reads ranges of shards, those in a bucket through a cache."""

    def __init__(
        self, shards: Sequence[StoredFile], sha256s: Sequence[str], cache: ShardCache | None = None
    ):
        self._shards, self._sha256s = tuple(shards), tuple(sha256s)
        self.cache = cache or ShardCache()
        self._read_bytes: dict[int, int] = {}
        self._asked: dict[int, float] = {}

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Reads bytes of a shard; raises as `storage.read` does."""
        shard = self._shards[number]
        if shard.path.is_local or shard.size > self.cache.budget:
            return read(shard.path, offset, size)
        path = self.cache.find(shard) or self._fetch_if_hot(number)
        if path is not None:
            try:
                return read(path, offset, size)
            except FileNotFoundError:
                pass  # it was evicted before it was opened
            except TruncatedError:
                self.cache.evict(shard)
            except StorageError as error:  # of this disk, which says nothing about the copy
                logging.warning("%s: the cached copy is passed over: %s", shard.path, error)
        content = read(shard.path, offset, size)
        # Counts may be lost between threads: that only delays the fetching.
        self._asked.setdefault(number, time.time())
        self._read_bytes[number] = self._read_bytes.get(number, 0) + size
        return content

    def evict(self, number: int) -> None:
        """Removes the copy of a shard of which damaged bytes came, so that it is read anew."""
        if not self._shards[number].path.is_local:
            self.cache.evict(self._shards[number])

    def _fetch_if_hot(self, number: int) -> DataPath | None:
        shard = self._shards[number]
        if self._read_bytes.get(number, 0) < shard.size:
            return None
        asked = self._asked.pop(number, None)
        self._read_bytes[number] = 0
        try:
            return self.cache.fetch(shard, self._sha256s[number], asked=asked)
        except StorageError:
            raise
        except (OSError, ValueError) as error:  # a full disk, a damaged shard: not cached
            logging.warning("%s is not cached: %s", shard.path, error)
            return None
