"""The examples that a list names by uid, as DataComp publishes subsets: `tar:...?filter=x.npy`."""

import io
import re
from typing import Any

import numpy as np
from numpy.lib import format as npy

from clipjax.data.source import DataSource
from clipjax.data.sources.subset import Subset
from clipjax.data.storage.files import read_given
from clipjax.data.storage.paths import data_path
from clipjax.data.storage.text_files import decode_text

SUFFIXES = (".npy", ".txt")
UIDS = np.dtype("S16")  # 128 bits, the first of them first: ordered as the uids are
_PAIRS = np.dtype([("f0", "u8"), ("f1", "u8")])
_UID = re.compile(r"[0-9a-f]{32}")


class UidFilter(Subset):
    """Examples of a source whose uid is in a list, in the source's order.

    Args:
        source: what is filtered; its records have `uid` in `.json` (tar), or in a column (Parquet,
            tables).
        where: `.npy`, as DataComp publishes it: pairs of u64 (dtype `u8,u8`), which are the halves
            of the 32 hexadecimal digits of a uid; or `.txt`, a uid a line.

    Attributes:
        counts: examples that are `kept`, `filtered_uid` and `without_uid`, and `not_found`: uids
            of the list that no example has.
    """

    def __init__(self, source: DataSource, where: str):
        listed = read_uids(where)
        found = source.uids() if hasattr(source, "uids") else None
        if found is None:
            raise ValueError(
                f"the filter {where!r} is a list of uids, and the data has none: they are looked "
                "for in `.json` of tar shards, and in the column `uid` of Parquet and tables"
            )
        uids, has = np.zeros(len(source), UIDS), np.zeros(len(source), bool)
        for index, uid in enumerate(found):
            if (packed := uid_bytes(uid)) is not None:
                uids[index], has[index] = packed, True
        kept = np.flatnonzero(np.isin(uids, listed) & has)
        without = len(has) - int(has.sum())
        super().__init__(source, kept, "uid_filter/1")
        if without == len(uids):
            raise ValueError(
                f"the filter {where!r} is a list of uids, and none of the {len(uids)} examples has "
                "one: 32 hexadecimal digits in `uid`"
            )
        left_out = {"filtered_uid": len(uids) - len(kept) - without, "without_uid": without}
        self.count(where, **left_out, not_found=len(np.setdiff1d(listed, uids[kept])))


def read_uids(where: str) -> np.ndarray:
    """Reads a list of uids: `[uids]` of UIDS, in ascending order, each once."""
    content = read_given(where)
    if data_path(where).suffix.lower() == ".npy":
        found = _of_pairs(content, where)
    else:
        uids = []
        for number, line in enumerate(decode_text(content, where).split("\n"), start=1):
            if line.strip():
                uids.append(uid_bytes(line))
                if uids[-1] is None:
                    raise ValueError(
                        f"{where}, line {number} is {line.strip()!r:.60}, expected a uid of 32 "
                        "hexadecimal digits"
                    )
        found = np.array(uids, UIDS)
    found = np.unique(found)
    if not len(found):
        raise ValueError(f"{where} holds no uid")
    return found


def uid_bytes(uid: Any) -> bytes | None:
    """Gives the 16 bytes of a uid of 32 hexadecimal digits; None if it is no such uid."""
    if isinstance(uid, bytes):
        uid = uid.decode("ascii", errors="replace")
    if not isinstance(uid, str) or not _UID.fullmatch(uid := uid.strip().lower()):
        return None
    return bytes.fromhex(uid)


def _of_pairs(content: bytes, where: str) -> np.ndarray:
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, _, dtype = read_header[version](file)
    except Exception as error:  # the header is Python's text, and its reader raises many kinds
        raise ValueError(f"{where} is no whole array of NumPy: {error!r:.200}") from error
    if len(shape) != 1 or dtype != _PAIRS:
        raise ValueError(
            f"{where} holds {dtype}{list(shape)}, expected [uids] of the dtype 'u8,u8', as "
            "DataComp has it"
        )
    rest = content[file.tell() :]
    if len(rest) != shape[0] * _PAIRS.itemsize:  # compared before memory is taken
        raise ValueError(
            f"{where} is no whole array of NumPy: {len(rest)} bytes for {shape[0]} uids"
        )
    pairs = np.frombuffer(rest, dtype)
    halves = np.stack([pairs["f0"], pairs["f1"]], axis=1).astype(">u8")
    return np.frombuffer(halves.tobytes(), UIDS)
