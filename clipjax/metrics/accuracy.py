"""Accuracy of a classifier, over the examples that a mask marks as real."""

import functools

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Bool, Float, Int


def topk_hits(
    scores: Float[Array, "batch classes"], labels: Int[Array, "batch"], *, k: int
) -> Bool[Array, "batch"]:
    """Tells whether the label is among the k highest scores of its row.

    Equal scores rank by class index, the lower first, so that a model which gives every class the
    same score gets what chance gives and not a full mark.

    Args:
        scores: `[batch, classes]`; any monotonic score (cosine, logit, probability).
        labels: `[batch]`, int; an index of a class.
        k: how many of the highest scores count; more than there are classes counts all of them.

    Returns:
        `[batch]`, bool.
    """
    best = jax.lax.top_k(scores, min(k, scores.shape[1]))[1]
    return jnp.any(best == labels[:, None], axis=1)


def topk_hits_of_several(
    scores: Float[Array, "batch classes"], targets: Bool[Array, "batch classes"], *, k: int
) -> Bool[Array, "batch"]:
    """Tells whether any label of an example is among the k highest scores of its row.

    Args:
        scores, k: as for `topk_hits`.
        targets: `[batch, classes]`, bool: whether the example has the label.

    Returns:
        `[batch]`, bool.
    """
    best = jax.lax.top_k(scores, min(k, scores.shape[1]))[1]
    return jnp.any(jnp.take_along_axis(targets, best, axis=1), axis=1)


def reliability_bins(
    confidence: Float[Array, "batch"],
    hits: Bool[Array, "batch"],
    mask: Bool[Array, "batch"],
    *,
    num_bins: int,
) -> Float[Array, "3 bins"]:
    """Sums examples, confidence and hits by bins of equal width of the confidence.

    A bin holds its upper end and not its lower one. ECE = sum_b |hits_b - confidence_b| / examples.

    Args:
        confidence: `[batch]`, probability of the best class, in [0, 1].
        hits: `[batch]`, whether that class is right.
        mask: `[batch]`, which examples count.

    Returns:
        `[3, bins]`, float32.

    Reference: arXiv:1706.04599, equation 3.
    """
    places = jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    ones = jnp.ones_like(confidence)
    sums = jnp.stack([ones, confidence, hits.astype(jnp.float32)]) * mask
    add = functools.partial(jax.ops.segment_sum, segment_ids=places, num_segments=num_bins)
    return jax.vmap(add)(sums.astype(jnp.float32))


def count_per_class(
    selected: Bool[Array, "batch"], labels: Int[Array, "batch"], num_classes: int
) -> Int[Array, "classes"]:
    """Counts, for every class, the selected examples that carry its label.

    Args:
        selected: `[batch]`, bool; `mask` counts the examples, `hits & mask` the right answers.
        labels: `[batch]`, int.
        num_classes: C.

    Returns:
        `[classes]`, int32.
    """
    return jax.ops.segment_sum(selected.astype(jnp.int32), labels, num_segments=num_classes)


def mean_per_class_recall(
    hits: Int[Array, "classes"], examples: Int[Array, "classes"]
) -> Float[Array, ""]:
    """Averages the recall of the classes that have examples, each class weighing the same.

    mean_c hits_c / examples_c over c with examples_c > 0

    Returns:
        Scalar in [0, 1], float32; NaN if no class has an example.
    """
    present = examples > 0
    recall = jnp.where(present, hits / jnp.maximum(examples, 1), 0.0)
    return (jnp.sum(recall) / jnp.sum(present)).astype(jnp.float32)
