"""Recall of a retrieval, with candidates that arrive in chunks and queries with many positives."""

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Bool, Float, Int


def empty_topk(num_queries: int, k: int) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """Makes the best-k list that `merge_topk` starts from: scores of -inf, owners of -1.

    Returns:
        (scores `[q, k]` float32, owners `[q, k]` int32).
    """
    return jnp.full((num_queries, k), -jnp.inf), jnp.full((num_queries, k), -1, jnp.int32)


def merge_topk(
    best: tuple[Float[Array, "q k"], Int[Array, "q k"]],
    queries: Float[Array, "q d"],
    candidates: Float[Array, "c d"],
    owners: Int[Array, "c"],
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """Merges one chunk of candidates into the k best of every query.

    Scores are inner products. Holding k owners a query instead of a row of the score matrix is what
    lets a retrieval over any number of candidates run in the memory of one chunk. Equal scores rank
    by order of arrival, as `jax.lax.top_k` does over the full row.

    Args:
        best: (scores `[q, k]`, owners `[q, k]`) of the chunks so far; `empty_topk` at first.
        queries: `[q, d]`, float32, normalised.
        candidates: `[c, d]`, float32, normalised.
        owners: `[c]`, int32; the item that a candidate belongs to, negative for padding.

    Returns:
        The new `best`.
    """
    scores = jnp.matmul(queries, candidates.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(owners >= 0, scores, -jnp.inf)
    all_scores = jnp.concatenate([best[0], scores], axis=1)
    all_owners = jnp.concatenate([best[1], jnp.broadcast_to(owners, scores.shape)], axis=1)
    top_scores, places = jax.lax.top_k(all_scores, best[0].shape[1])
    return top_scores, jnp.take_along_axis(all_owners, places, axis=1)


def retrieval_hits(
    best_owners: Int[Array, "q k"], query_owners: Int[Array, "q"], *, k: int
) -> Bool[Array, "q"]:
    """Tells whether any of a query's k best candidates belongs to the query's own item.

    Args:
        best_owners: `[q, K]`, int32, best first, K >= k; negative where there is no candidate.
        query_owners: `[q]`, int32; negative for padding, which never hits.
        k: how many of the best count.

    Returns:
        `[q]`, bool.
    """
    same = best_owners[:, :k] == query_owners[:, None]
    return jnp.any(same & (query_owners[:, None] >= 0), axis=1)
