"""The part of a source that scores best: `tar:...?filter=scores.parquet:top=0.3`."""

import hashlib
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from absl import logging

from clipjax.data.source import DataSource, keys_of
from clipjax.data.sources.subset import Subset
from clipjax.data.storage.file_reader import FileReader
from clipjax.data.storage.files import stat, wrong_path_told
from clipjax.data.storage.paths import data_path

_RULE = re.compile(r"(.+):(top|min)=([-+0-9.eE]+)")


class Scores(NamedTuple):
    """A file of scores.

    Attributes:
        keys: hashes of the keys, u64 `[n]` in ascending order.
        fingerprint: the fingerprint of the source that was scored, where the file says it.
    """

    keys: np.ndarray
    values: np.ndarray
    fingerprint: str | None


class ScoreFilter(Subset):
    """Examples of a source whose score is among the best, or high enough, in the source's order.

    Args:
        rule: `FILE.parquet:top=0.3` for the best 30 % of the examples that have a score (ties go
            to the one that comes first), or `FILE.parquet:min=0.28` for scores of 0.28 or more.
            The file has the columns `key` and `score`; an example without a score, or with NaN,
            is left out. Where it says of which data the scores are (`fingerprint`), and that is
            not this source, a warning is logged; where keys are numbers of rows, it is an error.

    Attributes:
        counts: examples that are `kept`, `filtered_score` and `without_score`.

    Raises:
        ValueError: if the rule or the file is wrong, the scores are of other rows, or no example
            has a score.
    """

    def __init__(self, source: DataSource, rule: str):
        found = _RULE.fullmatch(rule) if isinstance(rule, str) else None
        if found is None:
            raise ValueError(
                f"the filter {rule!r} is none of FILE.parquet:top=0.3 and FILE.parquet:min=0.28, "
                "and no list of uids, UIDS.npy or UIDS.txt"
            )
        where, kind, written = found.groups()
        try:
            limit = float(written)
        except ValueError as error:
            raise ValueError(f"the filter {rule!r}: {written!r} is no number") from error
        if kind == "top" and not 0 < limit <= 1:
            raise ValueError(f"the filter {rule!r} takes the best {limit}: expected a part of 1")
        told = read_scores(where)
        _check_same_data(getattr(source, "whole", source), told.fingerprint, where)
        scores = _scores_of(source, told, where)
        scored = np.flatnonzero(~np.isnan(scores))
        if kind == "min":
            kept = scored[scores[scored] >= limit]
        else:
            # A part of 0.3 of 10 is 3, although 0.3 * 10 may be a little less.
            count = math.floor(limit * len(scored) + 1e-6)
            kept = np.sort(scored[np.argsort(-scores[scored], kind="stable")[:count]])
        super().__init__(source, kept, "score_filter/1")
        without = len(scores) - len(scored)
        self.count(rule, filtered_score=len(scored) - len(kept), without_score=without)


def read_scores(where: str) -> Scores:
    """Reads a file of scores.

    Args:
        where: a Parquet file with the columns `key` (text) and `score` (a number), and
            `fingerprint` in its metadata, as `clipjax.inference.scoring.write_scores` writes it.
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    try:
        with wrong_path_told(where):
            file = pq.ParquetFile(FileReader(stat(data_path(where)), block=1 << 20))
            columns = file.schema_arrow.names
            if not {"key", "score"} <= set(columns):
                raise ValueError(
                    f"{where} has the columns {', '.join(columns)}; scores are in `key` and `score`"
                )
            hashes, scores = [], []
            for batch in file.iter_batches(columns=["key", "score"]):
                hashes.append(hashes_of(batch["key"].to_pylist(), len(batch)))
                scores.append(batch["score"].cast(pa.float32()).to_numpy(zero_copy_only=False))
    except pa.ArrowException as error:
        raise ValueError(f"{where} is no whole Parquet file of scores: {error}") from error
    keys = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    order = np.argsort(keys)
    keys, values = keys[order], np.concatenate(scores)[order] if scores else np.zeros(0, np.float32)
    if (keys[1:] == keys[:-1]).any():
        raise ValueError(f"{where} has a key twice: which of its scores counts?")
    fingerprint = (file.schema_arrow.metadata or {}).get(b"fingerprint")
    return Scores(keys, values, fingerprint.decode() if fingerprint else None)


def _check_same_data(source: DataSource, fingerprint: str | None, where: str) -> None:
    """Compares the source with the one that was scored."""
    if fingerprint is None or fingerprint == source.fingerprint():
        return
    if getattr(source, "positional_keys", False):
        raise ValueError(
            f"{where} has the scores of other data: the keys of this source are numbers of rows, "
            "and the rows, or the columns that are used, are not those that were scored. Score "
            "it anew with `clipjax data score`"
        )
    logging.warning(
        "%s has the scores of other data, or of this data before it changed; they are taken for "
        "the examples that have the same keys.",
        where,
    )


def _scores_of(source: DataSource, scores: Scores, where: str) -> np.ndarray:
    """Looks up the score of every example; NaN where there is none."""
    keys, values = scores.keys, scores.values
    wanted = hashes_of(keys_of(source), len(source))
    places = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    found = keys[places] == wanted if len(keys) else np.zeros(len(wanted), bool)
    if not found.any():
        raise ValueError(
            f"{where} has no score for any example; the first one's key is "
            f"{next(iter(keys_of(source)))!r}"
        )
    return np.where(found, values[places], np.float32(np.nan))


def hashes_of(keys: Iterable[str], count: int) -> np.ndarray:
    """64 bits of a hash of each of so many keys, one after the other: 8 bytes a key are held."""
    digests = (hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys)
    return np.fromiter((int.from_bytes(d, "little") for d in digests), np.uint64, count)
