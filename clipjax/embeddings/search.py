"""Exact search: the nearest embeddings by their cosine, block by block on a device."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.embeddings.index import Block, on_device

_SCORES = 1 << 24  # of a block, held at once: 64 MB
_ROWS = 1 << 16  # a lone query took 1.5 times as long by 1 << 14


def block_rows(num_queries: int, k: int) -> int:
    """Rows of a block, so that the scores of all queries with it fit into 64 MB."""
    return max(k, min(_ROWS, _SCORES // max(num_queries, 1)), 1)


def search(queries: np.ndarray, blocks: Iterable[Block], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest of each query; of equal ones those that come first.

    Args:
        queries: `[queries, embed]`, float32, rows of length 1.
        blocks: all embeddings, in their order; float16 is taken as float32. One is held on the
            device beside the one in work. Each number of rows is compiled once.
        k: how many; at most as many as there are embeddings.

    Returns:
        (cosines float32, places int64), each `[queries, k]`, the nearest first.
    """
    given = jnp.asarray(queries, jnp.float32)
    best = (jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32))
    before = None
    for block in blocks:
        best = _better(*best, given, on_device(block), block.first, block.filled)
        if before is not None:
            jax.block_until_ready(before)  # or the blocks of all of them wait in memory
        before = best
    scores, places = jax.device_get(best)
    return scores, places.astype(np.int64)


@jax.jit
def _better(
    scores: jax.Array,
    places: jax.Array,
    queries: jax.Array,
    block: jax.Array,
    first: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best of those so far and of a block; the first ones win where scores are equal."""
    k = scores.shape[1]
    cosines = jnp.matmul(queries, block.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)
    cosines = jnp.where(jnp.arange(len(block)) < count, cosines, -jnp.inf)
    found, rows = jax.lax.top_k(cosines, min(k, len(block)))
    both = jnp.concatenate([scores, found], axis=1)
    rows = jnp.concatenate([places, first + rows], axis=1)
    scores, order = jax.lax.top_k(both, k)
    return scores, jnp.take_along_axis(rows, order, axis=1)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of the exact neighbours, `[queries, k]`, that an approximate search found."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]
    return sum(hits) / exact.size


def search_faiss(
    queries: np.ndarray, blocks: Iterable[Block], k: int, factory: str
) -> tuple[np.ndarray, np.ndarray]:
    """Searches by an index of FAISS, which holds all embeddings in memory.

    Args:
        queries, blocks, k: as for `search`.
        factory: of `faiss.index_factory`, `HNSW32` or `IVF256,Flat`.

    Returns:
        (cosines, places), each `[queries, k]`; -1 where it finds fewer.

    Raises:
        ValueError: FAISS is not installed, or refuses the factory.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError(f"--faiss needs `pip install faiss-cpu`: {error}") from error
    data = np.concatenate([block.embeds[: block.filled] for block in blocks]).astype(np.float32)
    try:
        made = faiss.index_factory(data.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not made.is_trained:
            made.train(data)
        made.add(data)
        scores, places = made.search(np.ascontiguousarray(queries, np.float32), k)
    except RuntimeError as error:
        raise ValueError(f"--faiss={factory}: {str(error).splitlines()[-1]:.300}") from error
    return scores, places
