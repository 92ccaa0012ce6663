"""The uid of every record of a tar shard, as its `.json` says it: read once, and kept."""

import contextlib
import json
import zlib
from typing import Any

from absl import logging

from clipjax.data.storage.cache import cache_dir
from clipjax.data.storage.file_reader import FileReader
from clipjax.data.storage.files import StoredFile, read_all, write
from clipjax.data.storage.paths import DataPath
from clipjax.data.tar.index import TarIndex
from clipjax.files import sha256
from clipjax.strict_json import parse_fields

# From a disk a member at a time, from a bucket pictures with it: a request a record would be slow.
_LOCAL_BLOCK, _REMOTE_BLOCK = 1 << 12, 1 << 24


def uids_of(shard: StoredFile, index: TarIndex) -> list[Any]:
    """Gives the field `uid` of each record's `.json`, in order; None where there is none.

    They are kept in `$CLIPJAX_CACHE/tar_uids`, by the SHA-256 of the shard.
    """
    name = f"{index.shard['sha256']}-{index.header.get('key_ends', 'first_dot')}"
    path = DataPath(str(cache_dir() / "tar_uids" / name))
    try:
        digest, _, packed = read_all(path).partition(b"\n")
        if digest == sha256(packed).encode() and len(found := json.loads(packed)) == len(index):
            return found
        logging.warning("%s is damaged, and made anew.", path)
    except FileNotFoundError:
        pass
    found = read_uids(shard, index)
    packed = json.dumps(found).encode()
    write(path, sha256(packed).encode() + b"\n" + packed)
    return found


def read_uids(shard: StoredFile, index: TarIndex) -> list[Any]:
    """Reads the uid of each record out of its JSON; None without one."""
    block = _LOCAL_BLOCK if shard.path.is_local else _REMOTE_BLOCK
    file, found = FileReader(shard, block=block), []
    for record in index:
        part, uid = record.parts.get("json"), None
        if part is not None:
            file.seek(part.offset)
            content = file.read(part.size)
            with contextlib.suppress(ValueError, AttributeError, RecursionError):
                uid = parse_fields(content).get("uid") if zlib.crc32(content) == part.crc else None
        found.append(uid if isinstance(uid, str) else None)
    return found
