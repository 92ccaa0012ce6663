"""CLIP scores of a dataset's pairs, to filter it by (arXiv:2304.14108, DataComp)."""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.data.captions import flatten
from clipjax.data.source import DataSource, Example, check_example
from clipjax.data.storage.files import local_path
from clipjax.encoding.batches import RowLayout
from clipjax.encoding.reading import Embedded, ImageReader, embed_ranges
from clipjax.files import replacing
from clipjax.inference.model import Model
from clipjax.redaction import redact


def score_pairs(
    model: Model, source: DataSource, counts: collections.Counter[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Scores every pair of a source.

    score = mean over captions t of <image, t>, a cosine in [-1, 1]

    Args:
        counts: takes what cannot be used, by reason; such examples get no score.

    Yields:
        Keys and scores, float32, of some examples at a time, in the source's order.
    """
    check = functools.partial(check_example, giver="the data source", needed=("text",))
    for part in embed_source(model, source, check=check):
        counts.update(part.bad)
        texts = [[text for _, text in flatten(example["text"])] for example in part.examples]
        found = np.flatnonzero([bool(captions) for captions in texts])
        if len(found) < len(texts):
            counts["text_empty"] += len(texts) - len(found)
        if len(found):
            owners = np.repeat(np.arange(len(found)), [len(texts[i]) for i in found])
            embeds = model.encode_text([text for captions in texts for text in captions])
            cosines = np.sum(part.embeds[found][owners] * embeds, 1)
            totals = np.bincount(owners, cosines, len(found)) / np.bincount(owners)
            yield [part.examples[i]["key"] for i in found], totals.astype(np.float32)


def embed_source(
    model: Model,
    source: DataSource,
    *,
    check: Callable[[Example], object] = lambda example: None,
    shards: Iterable[range] | None = None,
    threads: int = 4,
    max_bad: int | None = None,
) -> Iterator[Embedded]:
    """Embeds the images of a source with a model, some at a time, in order.

    Args:
        model: on devices of this process alone.
        check: of an example, see `ImageReader`.
        shards: the parts that are embedded, none of which shares a batch with another; by default
            all of the source.
        threads: that read and decode.
        max_bad: images that may be unusable, which are counted; by default, any number.

    Raises:
        ValueError: the source fails, `check` refuses, or too many images are unusable.
        FloatingPointError: embeddings that are not finite.
    """
    shards = [range(len(source))] if shards is None else list(shards)
    layout = RowLayout(model.mesh, max(map(len, shards)), model.batch_size)
    size = layout.batch_size
    ranges = (
        shard[start : start + size] for shard in shards for start in range(0, len(shard), size)
    )
    with ImageReader(
        source,
        model.preprocess,
        max_bad=len(source) if max_bad is None else max_bad,
        where="the data",
        check=check,
        alone=True,
        threads=threads,
    ) as reader:
        yield from embed_ranges(model.encode_fns.image, model.variables, reader, ranges, layout)


def new_file(path: str | os.PathLike[str]) -> Path:
    """Gives the path of a file of scores that is not there yet.

    Raises:
        ValueError: if it exists or is in a bucket.
    """
    path = local_path(path)
    if path.exists():
        raise ValueError(f"{path} exists; give another name")
    return path


def write_scores(
    path: str | os.PathLike[str], scored: Iterator[tuple[list[str], np.ndarray]], **about: Any
) -> int:
    """Writes a Parquet file of the columns `key` and `score`, whole or not at all.

    Args:
        **about: what the scores are of; kept in the file's metadata as text.

    Raises:
        ValueError: if the file exists or is in a bucket, or a key comes twice.
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    path = new_file(path)
    metadata = {str(name): redact(str(value)) for name, value in about.items()}
    schema = pa.schema([("key", pa.string()), ("score", pa.float32())], metadata=metadata)
    seen: set[str] = set()
    with replacing(path) as work, pq.ParquetWriter(work, schema) as writer:
        for keys, scores in scored:
            for key in keys:
                if key in seen:
                    raise ValueError(
                        f"the key {key!r} comes twice, and a filter could not tell its scores "
                        "apart: `clipjax data pack --format tar` gives each example its own"
                    )
                seen.add(key)
            writer.write_table(pa.table([pa.array(keys), pa.array(scores)], schema=schema))
    return len(seen)
