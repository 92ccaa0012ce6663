"""Batches of few sizes, so that a new number of items compiles nothing new."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax.array_types import PyTree
from clipjax.encoding.batches import RowLayout
from clipjax.partitioning import num_batch_shards

# (parameters, rows on the mesh) -> one result a row
RunFn = Callable[[PyTree, jax.Array], jax.Array]


def bucket_size(num_rows: int, shards: int, max_batch: int) -> int:
    """Rounds a number of rows up to `shards` times a power of two, so that few sizes compile.

    Args:
        num_rows: rows to encode, at least 1.
        shards: devices that share the rows.
        max_batch: a bucket that reaches it is the largest.

    Returns:
        Rows of the padded batch; fewer than `num_rows` if several batches are needed.
    """
    size = shards
    while size < min(num_rows, max_batch):
        size *= 2
    return size


def run_in_buckets(
    run: RunFn,
    params: PyTree,
    items: Sequence[Any],
    read: Callable[[Sequence[Any]], PyTree],
    *,
    mesh: Mesh,
    max_batch: int,
    blank: PyTree,
) -> np.ndarray:
    """Runs a compiled function over items, in padded batches whose rows the mesh shares.

    Args:
        run: (params, rows) -> results, with one result a row.
        params: its parameters, on the mesh.
        items: what is read.
        read: items -> rows, an array or a tree of them.
        mesh: the devices.
        max_batch: most rows at once.
        blank: one row, read when there are no items: its values do not matter, its shape does.

    Returns:
        `[items, ...]` float32.
    """
    shards = num_batch_shards(mesh)
    if not items:
        rows = jax.tree.map(lambda x: np.zeros((shards, *x.shape), x.dtype), blank)
        return np.zeros((0, *jax.eval_shape(run, params, rows).shape[1:]), np.float32)
    bucket = bucket_size(len(items), shards, max_batch)
    found = []
    for start in range(0, len(items), bucket):
        chunk = items[start : start + bucket]
        rows = jax.tree.map(np.asarray, read(chunk))
        layout = RowLayout(mesh, bucket_size(len(chunk), shards, bucket), bucket)
        # Padding repeats a real row, so that it is finite in any model.
        places = np.minimum(np.arange(layout.batch_size), len(chunk) - 1)
        padded = layout.to_device(jax.tree.map(lambda x, places=places: x[places], rows))
        found.append(jax.device_get(run(params, padded))[: len(chunk)])
    return np.concatenate(found)
