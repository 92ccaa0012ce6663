import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.metrics import count_per_class, mean_per_class_recall, topk_hits


def brute_force_hits(scores, labels, k):
    ranks = [
        sorted(range(len(row)), key=lambda c, row=row: (-row[c], c)).index(label)
        for row, label in zip(scores, labels, strict=True)
    ]
    return np.array(ranks) < k


@pytest.mark.parametrize("k", [1, 3, 50])
def test_hits_equal_sorting(k):
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 5, (40, 7)).astype(np.float32)  # many ties
    labels = rng.integers(0, 7, 40)
    hits = topk_hits(jnp.asarray(scores), jnp.asarray(labels), k=k)
    np.testing.assert_array_equal(hits, brute_force_hits(scores, labels, k))


def test_a_model_that_scores_all_classes_alike_gets_chance():
    labels = jnp.arange(20) % 10
    scores = jnp.zeros((20, 10))
    assert float(topk_hits(scores, labels, k=1).mean()) == pytest.approx(0.1)
    assert float(topk_hits(scores, labels, k=5).mean()) == pytest.approx(0.5)


def test_recall_averages_the_classes_that_occur():
    labels = jnp.array([0, 0, 0, 0, 2, 2])
    hits = jnp.array([True, True, True, False, True, False])
    per_class = count_per_class(hits, labels, 4)
    examples = count_per_class(jnp.ones(6, bool), labels, 4)
    np.testing.assert_array_equal(per_class, [3, 0, 1, 0])
    np.testing.assert_array_equal(examples, [4, 0, 2, 0])
    assert float(mean_per_class_recall(per_class, examples)) == pytest.approx((0.75 + 0.5) / 2)


def test_shapes_are_checked():
    with pytest.raises(Exception, match="labels"):
        topk_hits(jnp.zeros((3, 4)), jnp.zeros((2,), jnp.int32), k=1)
