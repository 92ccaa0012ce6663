"""Exact search: the nearest embeddings by their cosine, block by block on a device."""

import itertools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.embeddings.index import Block, on_device

_SCORES = 1 << 24  # of a block, held at once: 64 MB
_ROWS = 1 << 16  # a lone query took 1.5 times as long by 1 << 14
_TOGETHER = 8  # blocks at most that are searched at once: each is a part of the program


def block_rows(num_queries: int, k: int) -> int:
    """Rows of a block, so that the scores of all queries with it fit into 64 MB."""
    return max(k, min(_ROWS, _SCORES // max(num_queries, 1)), 1)


def search(queries: np.ndarray, blocks: Iterable[Block], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest of each query; of equal ones those that come first.

    Args:
        queries: `[queries, embed]`, float32, rows of length 1.
        blocks: all embeddings, in their order, of equal rows; float16 is taken as float32. As many
            as `block_rows` allows are searched together, and held on the device beside those in
            work. Each number of rows is compiled once.
        k: how many; at most as many as there are embeddings.

    Returns:
        (cosines float32, places int64), each `[queries, k]`, the nearest first.
    """
    given = jnp.asarray(queries, jnp.float32)
    best = (jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32))
    before = None
    for group in _grouped(iter(blocks), block_rows(len(queries), k)):
        firsts = np.array([block.first for block in group], np.int32)
        counts = np.array([block.filled for block in group], np.int32)
        best = _better(*best, given, tuple(map(on_device, group)), firsts, counts)
        if before is not None:
            jax.block_until_ready(before)  # or the blocks of all of them wait in memory
        before = best
    scores, places = jax.device_get(best)
    return scores, places.astype(np.int64)


def _grouped(blocks: Iterator[Block], rows: int) -> Iterator[list[Block]]:
    """Blocks in groups of about so many rows; the last of several is filled with empty ones."""
    group, is_first = list(itertools.islice(blocks, 1)), True
    while group:
        length = max(1, min(_TOGETHER, rows // len(group[0].embeds)))
        group += itertools.islice(blocks, length - 1)
        missing = 0 if is_first else length - len(group)
        yield group + [group[-1]._replace(filled=0)] * missing
        group, is_first = list(itertools.islice(blocks, 1)), False


@jax.jit
def _better(
    scores: jax.Array,
    places: jax.Array,
    queries: jax.Array,
    group: tuple[jax.Array, ...],
    firsts: jax.Array,
    counts: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best of those so far and of blocks; the first ones win where scores are equal."""
    k, rows = scores.shape[1], jnp.arange(len(group[0]))
    parts = []
    for block, count in zip(group, counts, strict=True):
        exact = jax.lax.Precision.HIGHEST
        cosines = jnp.matmul(queries, block.astype(jnp.float32).T, precision=exact)
        parts.append(jnp.where(rows < count, cosines, -jnp.inf))
    found, order = jax.lax.top_k(jnp.concatenate(parts, axis=1), min(k, len(rows) * len(group)))
    both = jnp.concatenate([scores, found], axis=1)
    numbers = (firsts[:, None] + rows).reshape(-1)
    numbers = jnp.concatenate([places, numbers[order]], axis=1)
    scores, order = jax.lax.top_k(both, k)
    return scores, jnp.take_along_axis(numbers, order, axis=1)


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
