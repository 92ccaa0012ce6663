import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.metrics import best_positive, count_before, no_positive


def brute_force_ranks(queries, query_owners, candidates, owners, fold=None):
    """Rank of the best positive of every query, by sorting."""
    ranks = []
    for query, owner in zip(queries, query_owners, strict=True):
        scores = candidates @ query
        there = [c for c in range(len(scores)) if owners[c] >= 0]
        if fold is not None:
            there = [c for c in there if owners[c] // fold == owner // fold]
        order = sorted(there, key=lambda c, scores=scores: (-scores[c], c))
        ranks.append([owners[c] for c in order].index(owner) + 1)
    return np.array(ranks)


def ranks_of(queries, query_owners, candidates, owners, chunk, fold=None):
    given = jnp.asarray(queries), jnp.asarray(query_owners, jnp.int32)
    parts = [
        (
            jnp.asarray(candidates[start : start + chunk]),
            jnp.asarray(owners[start : start + chunk], jnp.int32),
            jnp.int32(start),
        )
        for start in range(0, len(candidates), chunk)
    ]
    best = no_positive(len(queries))
    for part in parts:
        best = best_positive(best, *given, *part)
    return 1 + sum(np.asarray(count_before(best, *given, *part, fold=fold)) for part in parts)


@pytest.mark.parametrize("chunk", [4, 8, 24])
@pytest.mark.parametrize("fold", [None, 5])
def test_chunks_equal_the_sorted_matrix_with_several_positives(chunk, fold):
    rng = np.random.default_rng(0)
    # Whole numbers: many scores are equal, and exact.
    queries = rng.integers(-2, 3, size=(10, 6)).astype(np.float32)
    candidates = rng.integers(-2, 3, size=(24, 6)).astype(np.float32)
    owners = np.concatenate([np.arange(10), rng.integers(0, 10, 12), [-1, -1]])
    rng.shuffle(owners)
    found = ranks_of(queries, np.arange(10), candidates, owners, chunk, fold)
    wanted = brute_force_ranks(queries, np.arange(10), candidates, owners, fold)
    np.testing.assert_array_equal(found, wanted)
    assert len(set(wanted)) > 3


def test_a_model_that_embeds_everything_alike_gets_chance():
    same = np.ones((40, 3), np.float32)
    found = ranks_of(same, np.arange(40), same, np.arange(40), 8)
    np.testing.assert_array_equal(found, np.arange(1, 41))
