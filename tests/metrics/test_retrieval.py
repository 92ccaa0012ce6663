import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.metrics import empty_topk, merge_topk, retrieval_hits


def brute_force_hits(queries, query_owners, candidates, owners, k):
    hits = []
    for query, owner in zip(queries, query_owners, strict=True):
        scores = candidates @ query
        order = sorted(range(len(scores)), key=lambda c, scores=scores: (-scores[c], c))
        hits.append(any(owners[c] == owner for c in order[:k]))
    return np.array(hits)


def streamed(queries, candidates, owners, chunk, k):
    best = empty_topk(len(queries), k)
    for start in range(0, len(candidates), chunk):
        part = slice(start, start + chunk)
        best = merge_topk(
            best,
            jnp.asarray(queries),
            jnp.asarray(candidates[part]),
            jnp.asarray(owners[part], jnp.int32),
        )
    return best


@pytest.mark.parametrize("chunk", [4, 8, 24])
def test_chunks_equal_the_full_matrix_with_several_positives(chunk):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(10, 6)).astype(np.float32)
    candidates = rng.normal(size=(24, 6)).astype(np.float32)
    owners = rng.integers(0, 10, 24)
    scores, best = streamed(queries, candidates, owners, chunk, 5)
    np.testing.assert_allclose(
        scores, -np.sort(-(queries @ candidates.T), axis=1)[:, :5], rtol=1e-5
    )
    for k in (1, 2, 5):
        hits = retrieval_hits(best, jnp.arange(10), k=k)
        wanted = brute_force_hits(queries, np.arange(10), candidates, owners, k)
        np.testing.assert_array_equal(hits, wanted)
    # The control: recall grows with k here, so the three comparisons are three.
    assert wanted.sum() > brute_force_hits(queries, np.arange(10), candidates, owners, 1).sum()


def test_padded_candidates_and_queries_never_hit():
    queries, candidates = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    best = streamed(queries, candidates, np.full(4, -1), 4, 2)[1]
    assert not retrieval_hits(best, jnp.array([0, -1]), k=2).any()
    best = streamed(queries, candidates, np.array([-1, 0, -1, -1]), 4, 2)[1]
    np.testing.assert_array_equal(retrieval_hits(best, jnp.array([0, -1]), k=2), [True, False])


def test_a_model_that_embeds_everything_alike_gets_chance():
    n, k = 40, 4
    same = np.ones((n, 3), np.float32)
    best = streamed(same, same, np.arange(n), 8, k)[1]
    assert float(retrieval_hits(best, jnp.arange(n), k=k).mean()) == pytest.approx(k / n)


def test_fewer_candidates_than_k():
    one = np.ones((1, 3), np.float32)
    best = streamed(one, one, np.array([0]), 1, 10)[1]
    assert bool(retrieval_hits(best, jnp.array([0]), k=10)[0])
