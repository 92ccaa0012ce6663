"""Clusters of embeddings: k-means by the cosine, block by block on a device."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from clipjax.data.storage.files import local_path
from clipjax.embeddings.index import Index, on_device
from clipjax.files import replacing

ROWS = 1 << 14  # of a block


class Clusters(NamedTuple):
    """Which embedding is in which cluster.

    Attributes:
        centres: `[clusters, embed]`, float32, rows of length 1; those of most embeddings first.
        labels: `[embeddings]`, int32.
        cosines: `[embeddings]`, float32, with the own centre.
        mean_cosines: their mean after each pass over the data.
    """

    centres: np.ndarray
    labels: np.ndarray
    cosines: np.ndarray
    mean_cosines: list[float]

    def members(self, cluster: int) -> np.ndarray:
        """The places of a cluster's embeddings, the nearest to its centre first."""
        found = np.flatnonzero(self.labels == cluster)
        return found[np.argsort(-self.cosines[found], kind="stable")]


def k_means(
    index: Index, clusters: int, *, passes: int = 50, seed: int = 0, rows: int = ROWS
) -> Clusters:
    """Finds centres such that embeddings are near to one of them.

    A centre is the mean of its embeddings, scaled to length 1; one that has none moves to the
    embedding that is worst placed. It ends when no embedding changes its cluster.

    Args:
        index: of n embeddings, at least `clusters`.
        clusters: how many.
        passes: over the data, at most.
        seed: of the embeddings that are the first centres.
        rows: of a block.

    Reference: spherical k-means, Dhillon and Modha 2001, doi:10.1023/A:1007612920971.
    """
    chosen = np.random.default_rng(seed).choice(len(index), clusters, replace=False)
    centres = index.embeddings(np.sort(chosen))
    labels, means = np.full(len(index), -1, np.int32), []
    while True:
        sums, near = jnp.zeros((clusters, index.embed_dim), jnp.float32), jnp.asarray(centres)
        before, labels, cosines = labels, np.empty_like(labels), np.empty(len(index), np.float32)
        for block in index.blocks(rows):
            sums, own, best = _assign(on_device(block), near, sums, block.filled)
            places = slice(block.first, block.first + block.filled)
            labels[places], cosines[places] = own[: block.filled], best[: block.filled]
        means.append(float(cosines.mean()))
        if (labels == before).all() or len(means) > passes:
            break
        centres = _moved(index, np.array(sums), labels, cosines)
    logging.info("%d passes, mean cosine %.4f", len(means), means[-1])
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    return Clusters(centres[order], np.argsort(order)[labels].astype(np.int32), cosines, means)


@jax.jit
def _assign(
    block: jax.Array, centres: jax.Array, sums: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds each embedding to the sum of its nearest centre's; gives that and the cosine."""
    embeds = block.astype(jnp.float32)
    cosines = jnp.matmul(embeds, centres.T, precision=jax.lax.Precision.HIGHEST)
    own = jnp.argmax(cosines, axis=1).astype(jnp.int32)
    real = jnp.arange(len(block)) < count
    # Padding is summed into a cluster that does not exist.
    added = jax.ops.segment_sum(embeds, jnp.where(real, own, len(centres)), len(centres) + 1)
    return sums + added[:-1], own, jnp.max(cosines, axis=1)


def _moved(index: Index, sums: np.ndarray, labels: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    empty = np.flatnonzero(np.bincount(labels, minlength=len(sums)) == 0)
    sums[empty] = index.embeddings(np.argsort(cosines, kind="stable")[: len(empty)])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.maximum(lengths, np.float32(1e-12))


def write_clusters(path: str | os.PathLike[str], index: Index, found: Clusters) -> None:
    """Writes a Parquet file of the columns `key`, `cluster` and `cosine`, whole or not at all."""
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    columns = {**index.columns(["key"]), "cluster": found.labels, "cosine": found.cosines}
    with replacing(local_path(path)) as work:
        pq.write_table(pa.table(columns), work)
