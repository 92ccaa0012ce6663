"""Running evaluations and keeping what they found."""

import dataclasses
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

__all__ = [
    "RESULTS",
    "ScheduledEval",
    "language_of",
    "mean_over_languages",
    "read_results",
    "run_evals",
    "write_results",
]

RESULTS = "results.json"
# As the SPEC `openmoji:unseen?language=de` is written in the name of a metric.
_LANGUAGE = re.compile(r"^(?P<dataset>.+_language)_(?P<language>[A-Za-z]{2,3}|mean)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduledEval:
    """An evaluation and when it runs.

    Attributes:
        name: of the entry in the config.
        metric_prefix: `<kind>/<dataset>`, in front of its metrics.
        every_steps: of training; 0 runs it at the end only.
        eval: has `run(params) -> dict[str, float]`.
    """

    name: str
    metric_prefix: str
    every_steps: int
    eval: Any


def run_evals(
    evals: Sequence[ScheduledEval], params: Any, *, beat: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Runs evaluations on given parameters.

    Args:
        evals: of an experiment.
        params: the model's variables.
        beat: called between evaluations, for a watchdog.

    Returns:
        `<kind>/<dataset>/<metric>` -> value; of a dataset in several languages the means too.
    """
    results: dict[str, float] = {}
    for scheduled in evals:
        begin = time.monotonic()
        values = scheduled.eval.run(params)
        results |= {f"{scheduled.metric_prefix}/{key}": value for key, value in values.items()}
        logging.info(
            "%s: %s (%.1f s)",
            scheduled.metric_prefix,
            ", ".join(f"{key} {value:.4g}" for key, value in values.items()),
            time.monotonic() - begin,
        )
        beat()
    means = mean_over_languages(results)
    for name, value in means.items():
        logging.info("%s: %.4g", name, value)
    return results | means


def language_of(prefix: str) -> tuple[str, str] | None:
    """Splits `<kind>/<dataset>_language_de` into what its languages share, and "de" (or "mean")."""
    match = _LANGUAGE.match(prefix)
    return (match["dataset"], match["language"]) if match else None


def mean_over_languages(results: Mapping[str, float]) -> dict[str, float]:
    """Averages the metrics of evaluations that differ in nothing but `?language=`.

    Args:
        results: `<kind>/<dataset>/<metric>` -> value.

    Returns:
        `<kind>/<dataset>_language_mean/<metric>` -> mean over the languages, each of which counts
        alike; a count (`num_...`) only where all languages have the same. Empty if no dataset
        comes in two languages or more.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for name, value in results.items():
        prefix, _, metric = name.rpartition("/")
        found = language_of(prefix)
        if found and found[1] != "mean":
            values[f"{found[0]}_mean/{metric}"].append(value)
    return {
        name: sum(v) / len(v)
        for name, v in values.items()
        if len(v) > 1 and ("/num_" not in name or len(set(v)) == 1)
    }


def read_results(workdir: Path) -> dict[str, float]:
    """Reads results.json; empty if there is none."""
    path = Path(workdir) / RESULTS
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def write_results(workdir: Path, step: int, results: Mapping[str, float]) -> Path:
    """Writes results.json, a flat map with `step`; values of an older step do not stay."""
    path = Path(workdir) / RESULTS
    found = read_results(workdir)
    if found.get("step") != step:
        found = {}
    merged = {**found, **results}
    merged |= mean_over_languages(merged)  # also of languages that were evaluated one by one
    text = json.dumps({**merged, "step": step}, indent=2, sort_keys=True)
    temporary = path.with_suffix(".json.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path
