"""What zero-shot classification counts on the devices, and the metrics and tables made of it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.evals.class_tables import MAX_CONFUSION, confusion_table, per_class_table
from clipjax.metrics import (
    average_precision,
    count_per_class,
    mean_per_class_recall,
    reliability_bins,
    topk_hits,
    topk_hits_of_several,
)
from clipjax.partitioning import replicated

NUM_NAMED = 3  # names that a Prediction lists
_NUM_BINS = 15  # of the reliability curve, arXiv:1706.04599

Counts = dict[str, jax.Array]


def empty_counts(num_classes: int, *, several: bool, has_scale: bool) -> dict[str, np.ndarray]:
    """Makes the zeros that `score` adds to.

    Args:
        several: whether an example has several labels, as `[batch, classes]`.
        has_scale: whether the scores are probabilities.
    """
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("examples", "nonfinite", "top1", "top5"), ()
    )
    if not several:
        names = ("hits_per_class", "examples_per_class", "predicted_per_class")
        shapes |= dict.fromkeys(names, (num_classes,))
        if num_classes <= MAX_CONFUSION:  # held once a device
            shapes["confusion"] = (num_classes * num_classes,)
    zeros = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
    return zeros | ({"bins": np.zeros((3, _NUM_BINS), np.float32)} if has_scale else {})


@functools.partial(jax.jit, static_argnames="mesh")
def score(
    counts: Counts,
    classifier: jax.Array,
    embeds: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    mesh: Mesh,
) -> tuple[Counts, tuple[jax.Array, jax.Array], jax.Array, jax.Array]:
    """Adds one batch to the counts.

    Args:
        labels: `[batch]`, int; of examples with several `[batch, classes]`, bool.

    Returns:
        The counts; (scores, classes) of the best names; hits `[batch, 2]` among the first one and
        five; and the cosines `[batch, classes]`, which stay where they lie.
    """
    num_classes = classifier.shape[0]
    cosines = jnp.matmul(embeds, classifier.T, precision=jax.lax.Precision.HIGHEST)
    finite = jnp.all(jnp.isfinite(cosines), axis=1)
    found = topk_hits if labels.ndim == 1 else topk_hits_of_several
    hits = jnp.stack([found(cosines, labels, k=k) & mask for k in (1, 5)], axis=1)
    batch = {
        "examples": jnp.sum(mask),
        "nonfinite": jnp.sum(mask & ~finite),
        "top1": jnp.sum(hits[:, 0]),
        "top5": jnp.sum(hits[:, 1]),
    }
    if labels.ndim == 1:
        predicted = jnp.argmax(cosines, axis=1)
        batch["hits_per_class"] = count_per_class(hits[:, 0], labels, num_classes)
        batch["examples_per_class"] = count_per_class(mask, labels, num_classes)
        batch["predicted_per_class"] = count_per_class(mask, predicted, num_classes)
        if "confusion" in counts:
            pairs = labels * num_classes + predicted
            batch["confusion"] = count_per_class(mask, pairs, num_classes * num_classes)
    scores = cosines
    if scale is not None:
        logits = scale * cosines
        scores = jax.nn.softmax(logits) if bias is None else jax.nn.sigmoid(logits + bias)
    # By cosine, as hits are counted: probabilities may be equal where these differ.
    places = jax.lax.top_k(cosines, min(NUM_NAMED, num_classes))[1]
    best = jnp.take_along_axis(scores, places, axis=1), places
    if scale is not None:
        surest = jnp.max(scores, axis=1)
        batch["bins"] = reliability_bins(surest, hits[:, 0], mask, num_bins=_NUM_BINS)
    result = (jax.tree.map(jnp.add, counts, batch), best)
    return *jax.lax.with_sharding_constraint(result, replicated(mesh)), hits, cosines


def metric_names(*, several: bool, has_scale: bool, mean_ap: bool) -> tuple[str, ...]:
    """What `metrics_of` gives, but for groups."""
    single = () if several else ("mean_per_class_recall", "macro_f1")
    added = (*single, *(("ece",) if has_scale else ()), *(("mean_ap",) if mean_ap else ()))
    return ("top1", "top5", *added, "num_examples", "num_classes")


def metrics_of(counts: Counts, names: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Makes metrics and tables of the counts over all examples.

    Returns:
        The metrics without mAP and groups; tables as plain JSON: `per_class`, `confusion`
        (place of the class -> place of the answer -> pictures) and `reliability`.
    """
    found: dict[str, float] = {}
    tables: dict[str, Any] = {}
    if "hits_per_class" in counts:
        recall = jax.jit(mean_per_class_recall)(
            counts["hits_per_class"], counts["examples_per_class"]
        )
        found["mean_per_class_recall"] = float(recall)
    host = jax.device_get(counts)
    examples = int(host["examples"])
    if "hits_per_class" in host:
        hits, of_class, predicted = (
            host[f"{name}_per_class"] for name in ("hits", "examples", "predicted")
        )
        occur = of_class > 0
        found["macro_f1"] = float(np.mean((2 * hits / np.maximum(of_class + predicted, 1))[occur]))
        tables["per_class"] = per_class_table(names, of_class, predicted, hits)
    if "confusion" in host:
        matrix = host["confusion"].reshape(len(names), len(names))
        tables["confusion"] = confusion_table(matrix)
    if "bins" in host:
        found["ece"] = float(np.abs(host["bins"][2] - host["bins"][1]).sum() / examples)
        tables["reliability"] = _curve(host["bins"])
    metrics = {
        "top1": float(host["top1"] / examples),
        "top5": float(host["top5"] / examples),
        **found,
        "num_examples": float(examples),
        "num_classes": float(len(names)),
    }
    return metrics, tables


def mean_ap(
    scores: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> tuple[float, list[dict[str, Any]]]:
    """Averages the precision over the classes that some example shows, and lists it by class.

    Args:
        scores, targets: see `average_precision`.
    """
    found, counts = average_precision(scores, targets), targets.sum(axis=0)
    table = [
        {"name": name, "examples": int(n), "average_precision": float(ap) if n else None}
        for name, ap, n in zip(names, found, counts, strict=True)
    ]
    return float(np.nanmean(found)), table


def _curve(bins: np.ndarray) -> list[Mapping[str, float]]:
    """The bins that hold examples: where they lie, and what they hold on average."""
    return [
        {
            "from": place / _NUM_BINS,
            "to": (place + 1) / _NUM_BINS,
            "examples": int(count),
            "confidence": float(confidence / count),
            "accuracy": float(hits / count),
        }
        for place, (count, confidence, hits) in enumerate(bins.T)
        if count
    ]
