"""Ranks of a retrieval, with candidates that arrive in chunks and queries with many positives.

The best positive of every query is found first; then, over the same chunks again, how many
candidates stand before it. No more than a chunk of the score matrix is ever held.
"""

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Bool, Float, Int

Best = tuple[Float[Array, "q"], Int[Array, "q"]]
Nearest = tuple[Float[Array, "q k"], Int[Array, "q k"]]


def no_positive(num_queries: int) -> Best:
    """Makes what `best_positive` starts from: scores of -inf.

    Returns:
        (scores `[q]` float32, places `[q]` int32).
    """
    return jnp.full(num_queries, -jnp.inf), jnp.full(num_queries, -1, jnp.int32)


def best_positive(
    best: Best,
    queries: Float[Array, "q d"],
    query_owners: Int[Array, "q"],
    candidates: Float[Array, "c d"],
    owners: Int[Array, "c"],
    start: Int[Array, ""],
) -> Best:
    """Finds the score and the place of every query's best positive, of equal ones the first.

    Args:
        best: of the chunks so far; `no_positive` at first.
        queries, candidates: float32, normalised; scores are inner products.
        query_owners, owners: int32; the item that a query, or candidate, belongs to: positive where
            they are equal. Negative for padding.
        start: the place of the chunk's first candidate.

    Returns:
        The new `best`.
    """
    scores = jnp.where(_same(query_owners, owners), _scores(queries, candidates), -jnp.inf)
    place = jnp.argmax(scores, axis=1)
    found = jnp.take_along_axis(scores, place[:, None], axis=1)[:, 0]
    better = found > best[0]
    return jnp.maximum(found, best[0]), jnp.where(better, start + place, best[1])


def count_before(
    best: Best,
    queries: Float[Array, "q d"],
    query_owners: Int[Array, "q"],
    candidates: Float[Array, "c d"],
    owners: Int[Array, "c"],
    start: Int[Array, ""],
    *,
    fold: int | None = None,
) -> Int[Array, "q"]:
    """Counts the candidates of a chunk that stand before every query's best positive.

    Equal scores rank by order of arrival, so that a model which gives every candidate the same
    score gets what chance gives. A query's own positives are never before the best of them.

    Args:
        best: over all chunks; the others as for `best_positive`.
        fold: items a fold: only candidates of the query's own fold, of items that stand in one
            after the other, count.

    Returns:
        `[q]`, int32.
    """
    scores, places = _scores(queries, candidates), start + jnp.arange(len(owners))
    before = scores > best[0][:, None]
    before |= (scores == best[0][:, None]) & (places[None] < best[1][:, None])
    before &= (owners >= 0) & ~_same(query_owners, owners)
    if fold is not None:
        before &= query_owners[:, None] // fold == owners // fold
    return jnp.sum(before, axis=1, dtype=jnp.int32)


def nearest(
    best: Nearest,
    queries: Float[Array, "q d"],
    candidates: Float[Array, "c d"],
    owners: Int[Array, "c"],
) -> Nearest:
    """Finds the k best candidates of every query, of equal ones the first.

    Args:
        best: of the chunks so far, scores and owners, each `[q, k]`; -inf and -1 at first.
        queries, candidates, owners: as for `best_positive`.

    Returns:
        The new `best`, the highest score first.
    """
    scores = jnp.where(owners >= 0, _scores(queries, candidates), -jnp.inf)
    scores = jnp.concatenate([best[0], scores], axis=1)
    both = [best[1], jnp.broadcast_to(owners, (len(queries), len(owners)))]
    top, places = jax.lax.top_k(scores, best[0].shape[1])
    return top, jnp.take_along_axis(jnp.concatenate(both, axis=1), places, axis=1)


def _same(query_owners: Int[Array, "q"], owners: Int[Array, "c"]) -> Bool[Array, "q c"]:
    return (query_owners[:, None] == owners) & (owners >= 0)


def _scores(queries: Float[Array, "q d"], candidates: Float[Array, "c d"]) -> Float[Array, "q c"]:
    return jnp.matmul(queries, candidates.T, precision=jax.lax.Precision.HIGHEST)
