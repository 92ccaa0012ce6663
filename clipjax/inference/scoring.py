"""CLIP scores of a dataset's pairs, to filter it by (arXiv:2304.14108, DataComp)."""

import collections
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.data.captions import flatten
from clipjax.data.images.preprocess import PIXELS
from clipjax.data.source import DataSource, SampleError, read_example
from clipjax.data.storage.files import local_path
from clipjax.files import replacing
from clipjax.inference.model import Model
from clipjax.redaction import redact

CHUNK = 1024  # examples that are embedded together


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
    to_rgb = PIXELS[model.pixels]
    for start in range(0, len(source), CHUNK):
        keys: list[str] = []
        images, texts, owners = [], [], []
        for index in range(start, min(start + CHUNK, len(source))):
            try:
                example = read_example(source, index)
                image = to_rgb(example["image"])
            except SampleError as error:
                counts[error.reason] += 1
                continue
            captions = [text for _, text in flatten(example["text"])]
            if not captions:
                counts["text_empty"] += 1
                continue
            owners += [len(keys)] * len(captions)
            keys.append(example["key"])
            images.append(image)
            texts += captions
        if keys:
            cosines = np.sum(model.encode_image(images)[owners] * model.encode_text(texts), 1)
            totals = np.bincount(owners, cosines, len(keys)) / np.bincount(owners)
            yield keys, totals.astype(np.float32)


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
