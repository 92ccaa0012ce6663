"""Targets of a recipe beside what was measured: is the difference more than chance?

A share of n examples is measured with the interval of Wilson's score (1927) at 95 %: a recipe falls
short where the upper end of that is below its target.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipjax.evals.naming import EvalName
from clipjax.evals.running import EvalResult
from clipjax.ranges import is_list

INTERVAL = "Wilson score, 95 %"
_Z = 1.959963984540054  # of the normal distribution, 95 % within

_SHORT = re.compile(r"(?P<dataset>\w+?)_(?:(?P<top>top\d+)|recall_at_(?P<k>\d+))")
_ALIASES = {"imagenet1k": "imagenet", "mscoco": "coco"}
# Behind `imagenet` they name other pictures.
_VARIANTS = {"v2", "a", "c", "o", "r", "real", "sketch"}
_WAYS = ("image_retrieval", "text_retrieval")
# Metric -> the count of what it is a share of.
_COUNTS = {"top": "num_examples", "image_retrieval": "num_texts", "text_retrieval": "num_images"}


@dataclasses.dataclass(frozen=True)
class Goal:
    """A number to reach, of a metric that will be measured: `<kind>/<dataset>/<metric>`."""

    name: str
    prefix: str
    metric: str
    value: float


def wilson(share: float, count: float) -> tuple[float, float]:
    """The interval of a share of so many independent trials.

    Args:
        share: measured, in [0, 1].
        count: of trials.

    Returns:
        Lower and upper end; 95 % of such intervals hold the share that is measured without end.
    """
    z2 = _Z * _Z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def find_goals(target: Mapping[str, Any], names: Sequence[EvalName], where: str) -> list[Goal]:
    """Finds for each target the evaluation that measures it.

    Args:
        target: `<dataset>_top1` -> a share, `<dataset>_recall_at_1` -> (captions to pictures,
            pictures to captions), or a metric's whole name -> a share.
        names: of the evaluations that will run.
        where: whose targets they are, for messages.

    Raises:
        ValueError: there is no target, one that no evaluation measures, or that several do.
    """
    if not target:
        raise ValueError(
            f"{where} has no target to verify by: give the recipe's by config=FILE, or write "
            "config.target.imagenet_top1 = 0.6332"
        )
    goals = []
    for name, value in target.items():
        if "/" in name:
            prefix, _, metric = name.rpartition("/")
            found = [each.prefix for each in names if each.prefix == prefix]
            metrics: tuple[str, ...] = (metric,)
        else:
            kind, dataset, metrics = _parse(name)
            found = [e.prefix for e in names if e.kind == kind and _is_of(dataset, e.dataset)]
        values = tuple(value) if is_list(value) else (value,)
        if len(values) != len(metrics):
            raise ValueError(
                f"the target {name} of {where} has {len(values)} numbers, and is of "
                f"{' and '.join(metrics)}"
            )
        if len(found) != 1:
            run = ", ".join(each.prefix for each in names) or "none"
            told = (
                f"{' and '.join(found)} both measure it" if found else "no evaluation measures it"
            )
            raise ValueError(
                f"the target {name} of {where}: {told}; those that run are {run}. Evaluate the set "
                "that it is of, whose name has to hold that of the target, and one alone"
            )
        goals += [Goal(name, found[0], *each) for each in zip(metrics, values, strict=True)]
    return goals


def judge(goals: Iterable[Goal], results: Iterable[EvalResult]) -> list[dict[str, Any]]:
    """Compares what was measured with its goals, as plain JSON.

    Returns:
        For each goal: `target`, `metric`, `wanted`, `measured`, `count`, `low` and `high` (the
        interval), `is_met`: whether `high` is not below what is wanted.

    Raises:
        ValueError: its evaluation did not run, or the metric is no share of a count.
    """
    measured = {result.name.prefix: result.metrics for result in results}
    found = []
    for goal in goals:
        metrics = measured.get(goal.prefix)
        if metrics is None or goal.metric not in metrics:
            raise ValueError(
                f"the target {goal.name}: {goal.prefix}/{goal.metric} was not measured"
            )
        counts = [metrics[c] for start, c in _COUNTS.items() if goal.metric.startswith(start)]
        if not counts:
            raise ValueError(
                f"the target {goal.name}: {goal.metric} is no share of examples, which has a "
                "binomial interval; top1, top5 and recall@k are"
            )
        low, high = wilson(metrics[goal.metric], counts[0])
        found.append(
            {
                "target": goal.name,
                "metric": f"{goal.prefix}/{goal.metric}",
                "wanted": goal.value,
                "measured": metrics[goal.metric],
                "count": counts[0],
                "low": low,
                "high": high,
                "interval": INTERVAL,
                "is_met": high >= goal.value,
            }
        )
    return found


def _parse(name: str) -> tuple[str, str, tuple[str, ...]]:
    parts = _SHORT.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"the target {name} is of no known form: DATASET_top1, DATASET_recall_at_1, or the "
            "whole name of a metric, zero_shot/DATASET/top1"
        )
    if parts["top"]:
        return "zero_shot", parts["dataset"], (parts["top"],)
    return "retrieval", parts["dataset"], tuple(f"{way}_recall@{parts['k']}" for way in _WAYS)


def _is_of(dataset: str, name: str) -> bool:
    """Whether the words of a dataset stand in a name, as those of `tar_data_imagenet_val`."""
    wanted, words = _words(dataset), _words(name)
    size = len(wanted)
    return any(
        words[i : i + size] == wanted and not _VARIANTS & {*words[i + size : i + size + 1]}
        for i in range(len(words))
    )


def _words(name: str) -> list[str]:
    words = re.split(r"[\W_]+", name.lower())
    return [_ALIASES.get(word, word) for word in words if word and word != "wds"]
