"""Running evaluations and keeping what they found."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

__all__ = ["RESULTS", "ScheduledEval", "read_results", "run_evals", "write_results"]

RESULTS = "results.json"


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
        `<kind>/<dataset>/<metric>` -> value.
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
    return results


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
    text = json.dumps({**found, **results, "step": step}, indent=2, sort_keys=True)
    temporary = path.with_suffix(".json.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path
