"""Running evaluations and keeping what they found."""

import dataclasses
import functools
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from clipjax.evals.naming import EvalName
from clipjax.files import write_file
from clipjax.strict_json import parse_fields

RESULTS = "results.json"
# Keys of a document of results beside the metrics, whose names hold a slash.
_STEP, _EVALUATIONS = "step", "evaluations"
SAVED = "checkpoint_sha256"  # None until the checkpoint is saved


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduledEval:
    """An evaluation and when it runs.

    Attributes:
        key: of the entry in the config.
        name: what it is of.
        every_steps: of training; 0 runs it at the end only.
        which: parameters of a run, by the name of an average; None are those of the model itself.
        eval: has `run(params) -> dict[str, float]`; perhaps `metric_names`, the keys of that, and
            `about() -> dict`, plain JSON: what its numbers depend on; and `tables() -> dict`, plain
            JSON: what its last run found besides.
    """

    key: str
    name: EvalName
    every_steps: int
    eval: Any
    which: str | None = None

    def of_average(self, name: str) -> "ScheduledEval":
        """The same evaluation of an average's parameters; its metrics are named after it."""
        dataset = f"{self.name.dataset}_average_{name}"
        return dataclasses.replace(
            self, name=dataclasses.replace(self.name, dataset=dataset), which=name
        )

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What the numbers depend on, as plain JSON; found once."""
        about = self.eval.about() if hasattr(self.eval, "about") else {}
        source: Any = getattr(self.eval, "source", None)
        if hasattr(source, "fingerprint"):
            about = {"data_fingerprint": source.fingerprint(), **about}
        if getattr(source, "subset", None):
            about = {"subset": source.subset, **about}
        return about


def by_parameters(
    evals: Sequence[ScheduledEval],
) -> dict[str | None, list[ScheduledEval]]:
    """Groups evaluations by the parameters that they are of."""
    groups: dict[str | None, list[ScheduledEval]] = defaultdict(list)
    for scheduled in evals:
        groups[scheduled.which].append(scheduled)
    return groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult:
    """What an evaluation found, and the seconds that it took; 0 where these are not known."""

    name: EvalName
    metrics: Mapping[str, float]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = dataclasses.field(default=0.0, compare=False)


def run_evals(
    evals: Sequence[ScheduledEval],
    variables: Any,
    *,
    of: Sequence[ScheduledEval] | None = None,
    beat: Callable[[], None] = lambda: None,
) -> list[EvalResult]:
    """Runs evaluations of a model.

    Args:
        of: all those that the model has, where only some run: a dataset has a mean over all of its
            languages or none.
        beat: called between evaluations, for a watchdog.

    Returns:
        What each found; of a dataset in several languages the means too.
    """
    results = []
    for scheduled in evals:
        begin = time.monotonic()
        values = scheduled.eval.run(variables)
        tables = scheduled.eval.tables() if hasattr(scheduled.eval, "tables") else {}
        about = {**scheduled.about, "tables": tables} if tables else scheduled.about
        seconds = time.monotonic() - begin
        found = EvalResult(name=scheduled.name, metrics=values, about=about, seconds=seconds)
        results.append(found)
        logging.info(
            "%s: %s (%.1f s)",
            scheduled.name.prefix,
            ", ".join(f"{key} {value:.4g}" for key, value in values.items()),
            seconds,
        )
        beat()
    results = with_means(results, _languages(evals if of is None else of))
    for name, value in flat_metrics(r for r in results if r.name.is_mean).items():
        logging.info("%s: %.4g", name, value)
    return results


def _languages(evals: Iterable[ScheduledEval]) -> Counter[tuple[str, str]]:
    """Counts the languages of each kind and dataset."""
    return Counter((e.name.kind, e.name.dataset) for e in evals if e.name.languages)


def with_means(
    results: Iterable[EvalResult], languages: Mapping[tuple[str, str], int] | None = None
) -> list[EvalResult]:
    """Adds the means over evaluations that differ in nothing but the language.

    Args:
        languages: number of them of each (kind, dataset), without which it has no mean.

    Returns:
        The results, then a mean for each dataset that comes in two languages or more, in which each
        language counts alike; a count (`num_...`) only where all languages have the same.
    """
    results = [result for result in results if not result.name.is_mean]
    groups: dict[tuple[str, str], list[EvalResult]] = defaultdict(list)
    for result in results:
        if result.name.languages:
            groups[result.name.kind, result.name.dataset].append(result)
    for key, group in groups.items():
        if len(group) < 2 or (languages is not None and len(group) < languages[key]):
            continue
        values = defaultdict(list)
        for result in group:
            for metric, value in result.metrics.items():
                values[metric].append(value)
        means = {
            metric: sum(v) / len(v)
            for metric, v in values.items()
            if len(v) > 1 and (not metric.startswith("num_") or len(set(v)) == 1)
        }
        their_languages = tuple(result.name.languages[0] for result in group)
        name = dataclasses.replace(group[0].name, languages=their_languages)
        results.append(EvalResult(name=name, metrics=means))
    return results


def flat_metrics(results: Iterable[EvalResult]) -> dict[str, float]:
    """Gives `<kind>/<dataset>/<metric>` -> value."""
    return {
        f"{result.name.prefix}/{metric}": value
        for result in results
        for metric, value in result.metrics.items()
    }


def list_metrics(evals: Iterable[ScheduledEval]) -> tuple[dict[str, int], list[str]]:
    """Lists what evaluations measure, before any is run.

    Returns:
        `<kind>/<dataset>/<metric>` -> every how many steps, 0 at the end only; and the beginnings
        of the names of those that have no `metric_names`.
    """
    results, unknown = [], []
    for scheduled in evals:
        names = getattr(scheduled.eval, "metric_names", None)
        if names is None:
            unknown.append(f"{scheduled.name.prefix}/")
        else:
            metrics = dict.fromkeys(names, scheduled.every_steps)
            results.append(EvalResult(name=scheduled.name, metrics=metrics))
    every = {r.name: next(iter(r.metrics.values()), 0) for r in results}
    found: dict[str, int] = {}
    for result in with_means(results):
        of = [
            int(steps)
            for name, steps in every.items()
            if (name.kind, name.dataset) == (result.name.kind, result.name.dataset)
        ]
        # A mean is there where all of its languages are due.
        steps = math.lcm(*of) if result.name.is_mean else every[result.name]
        found |= {f"{result.name.prefix}/{metric}": int(steps) for metric in result.metrics}
    return found, unknown


def model_facts(
    contract: Mapping[str, Any], *, preprocess: str = "clipjax", checkpoint: str | None = None
) -> dict[str, Any]:
    """Says what all results of a model depend on, as plain JSON."""
    size = (contract.get("model") or {}).get("image_size")
    fields = {"pixels": preprocess, "image_size": size, **(contract.get("preprocess") or {})}
    return {
        SAVED: checkpoint,
        "preprocess": fields,
        "tokenizer": dict(contract.get("tokenizer") or {}),
    }


def results_document(
    step: int, results: Iterable[EvalResult], model: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes results as plain JSON: a flat map of metrics with `step`, and the structure beside.

    Returns:
        `<kind>/<dataset>/<metric>` -> value; `step`; `evaluations`: `<kind>/<dataset>` -> its parts
        and what it depends on; and the parts of `model`.
    """
    results = list(results)
    evaluations = {
        result.name.prefix: {
            **dataclasses.asdict(result.name),
            "languages": list(result.name.languages),
            "metrics": dict(result.metrics),
            **result.about,
        }
        for result in results
    }
    return {**flat_metrics(results), **model, _STEP: step, _EVALUATIONS: evaluations}


def results_in(document: Mapping[str, Any]) -> list[EvalResult]:
    """Reads the evaluations back from a document; none of one from before it held them."""
    fields = [field.name for field in dataclasses.fields(EvalName)]
    found = []
    for entry in document.get(_EVALUATIONS, {}).values():
        name = {field: entry[field] for field in fields}
        about = {k: v for k, v in entry.items() if k not in (*fields, "metrics")}
        name["languages"] = tuple(name["languages"])
        metrics = dict(entry["metrics"])
        texts = (name["kind"], name["dataset"], name["spec"], *name["languages"], *metrics)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name of an evaluation or a metric is no text")
        if not all(isinstance(value, int | float) for value in metrics.values()):
            raise TypeError("a metric is no number")
        found.append(EvalResult(name=EvalName(**name), metrics=metrics, about=about))
    return found


def read_document(workdir: Path) -> dict[str, Any]:
    """Reads results.json; empty if there is none.

    Raises:
        ValueError: it is damaged, or not what `results_document` gives.
    """
    path = Path(workdir) / RESULTS
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        document = parse_fields(data.decode("utf-8"))
        results_in(document)
        groups = (document.get("preprocess") or {}, document.get("tokenizer") or {})
        if not all(isinstance(group, dict) for group in groups):
            raise TypeError("what the numbers depend on is no object")
        if not isinstance(document.get(SAVED) or "", str):
            raise TypeError(f"{SAVED} is no text")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold results ({type(error).__name__}: {error}): move it away; "
            "`clipjax train --eval` makes it anew"
        ) from error
    return document


def set_aside_damaged(workdir: Path) -> None:
    """Renames a results.json that cannot be read: what it held is found by evaluating again."""
    path = Path(workdir) / RESULTS
    try:
        read_document(workdir)
    except ValueError as error:
        aside = path.with_name(f"{RESULTS}.damaged")
        logging.warning("%s. It is set aside as %s", error, aside.name)
        path.replace(aside)


def read_results(workdir: Path) -> dict[str, float]:
    """Reads the numbers of results.json, with `step`; empty if there is none."""
    document = read_document(workdir)
    return {name: value for name, value in document.items() if isinstance(value, int | float)}


def write_results(
    workdir: Path, step: int, results: Iterable[EvalResult], model: Mapping[str, Any] | None = None
) -> Path:
    """Writes results.json, as `results_document` has it; values of an older step do not stay."""
    path = Path(workdir) / RESULTS
    before = read_document(workdir)
    if before.get(_STEP) != step:
        before = {}
    merged = {r.name.prefix: r for r in (*results_in(before), *results)}
    # The means also of languages that were evaluated one by one.
    document = before | results_document(step, with_means(merged.values()), model or {})
    write_file(path, json.dumps(document, indent=2, sort_keys=True) + "\n")
    return path
