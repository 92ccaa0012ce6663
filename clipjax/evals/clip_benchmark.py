"""Results as CLIP_benchmark writes them: a JSON of its keys for each evaluation."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.source import spec_name
from clipjax.evals.running import EvalResult

TASKS = {"zero_shot": "zeroshot_classification", "retrieval": "zeroshot_retrieval"}
_KEYS = {
    "top1": "acc1",
    "top5": "acc5",
    "mean_per_class_recall": "mean_per_class_recall",
    "mean_ap": "mean_average_precision",
}
FIELDS = ("dataset", "pretrained", "model", "language", "task")


def clip_benchmark_results(
    results: Sequence[EvalResult], *, model: str, pretrained: str
) -> list[dict[str, Any]]:
    """Writes results with CLIP_benchmark's keys; what it has no key for is left out.

    Args:
        results: of zero-shot and retrieval.
        model: name of the model.
        pretrained: name of its weights.

    Raises:
        ValueError: a result of a kind that it has not.
    """
    found = []
    for result in results:
        name = result.name
        if name.is_mean:
            continue  # its tables make means themselves
        if name.kind not in TASKS:
            raise ValueError(
                f"the format clip_benchmark has no task for {name.prefix}; it has "
                f"{' and '.join(TASKS)}"
            )
        found.append(
            {
                "dataset": name.dataset,
                "model": model,
                "pretrained": pretrained,
                "task": TASKS[name.kind],
                "metrics": _metrics(result.metrics),
                "language": name.languages[0] if name.languages else "en",
            }
        )
    return found


def files_of(documents: Sequence[Mapping[str, Any]], path: str) -> dict[str, str]:
    """Gives path -> content; a path may hold `{dataset}` and the other `FIELDS`.

    Raises:
        ValueError: two documents would be one file.
    """
    files: dict[str, str] = {}
    for document in documents:
        where = path
        for field in FIELDS:
            where = where.replace(f"{{{field}}}", spec_name(str(document[field])))
        if where in files:
            raise ValueError(
                f"json={str(path)!r}: {len(documents)} evaluations are as many files in the format "
                "clip_benchmark: write {dataset} into the name, and {task} or {language} if need be"
            )
        files[where] = json.dumps(document)
    return files


def _metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    found = {_KEYS[name]: value for name, value in metrics.items() if name in _KEYS}
    if "mean_average_precision" in found:  # of several labels it has this one alone
        return {"mean_average_precision": found["mean_average_precision"]}
    found |= {name: value for name, value in metrics.items() if "_retrieval_recall@" in name}
    if metrics.get("num_classes", math.inf) < 5:
        found["acc5"] = math.nan  # as it is there
    return found
