"""report.html: what a run did, in one file that opens anywhere and needs nothing else."""

import contextlib
import importlib.metadata
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

import clipjax
from clipjax import goodput
from clipjax.checkpoint import Manifest, choose_step
from clipjax.data.source import DataSource
from clipjax.evals.budget import LEFT_OUT
from clipjax.evals.retrieval import Retrieval
from clipjax.evals.retrieval_answers import Found, find_pictures
from clipjax.evals.running import (
    RESULTS,
    SAVED,
    ScheduledEval,
    read_document,
    read_results,
    results_in,
)
from clipjax.evals.zero_shot import Prediction, ZeroShot
from clipjax.files import write_file
from clipjax.metric_writers import EVALS_FILE, TRAIN_FILE
from clipjax.report import answers as report_answers
from clipjax.report import page as report_page
from clipjax.report.curves import Points, format_number
from clipjax.report.drift import drift_table
from clipjax.report.examples import examples_section
from clipjax.report.figures import svg_file
from clipjax.report.found import all_figures, found_section
from clipjax.strict_json import parse_fields

REPORT = "report.html"
# Of the page's style sheet what its pictures need, in colours that show on light and on dark.
_SVG_STYLE = (
    "text{font:11px system-ui,sans-serif}.label,.tick{fill:#7b828e}.grid,.frame{stroke:#9aa0ab55;"
    "fill:none}.whisker{stroke:#7b828e;stroke-width:1.5}.s0{fill:#4f86e0}.s1{fill:#d9662b}"
    ".s2{fill:#2a9660}"
)
_FOOTER = (
    f"Written by clipjax {clipjax.__version__}. This file is complete in itself: no scripts, "
    "nothing is loaded from elsewhere."
)


class Answers(NamedTuple):
    """What evaluations, `<kind>/<dataset>`, say of pictures, and which they find for captions."""

    predictions: Mapping[str, Sequence[Prediction]] = {}
    found: Mapping[str, Sequence[Found]] = {}


def collect_answers(
    evals: Sequence[ScheduledEval], params: Any, *, num_pictures: int = 48, num_queries: int = 12
) -> Answers:
    """Asks for the answers that the report shows; a collective, so every process calls it.

    Args:
        evals: of a run; those that are neither zero-shot nor retrieval are passed over.
        params: the model's variables.
        num_pictures: of all zero-shot evaluations together, but 4 of each at the least.
        num_queries: captions of all retrievals together, but 4 of each at the least.
    """
    named = {s.name.prefix: s.eval for s in evals if isinstance(s.eval, ZeroShot)}
    searched = {s.name.prefix: s.eval for s in evals if isinstance(s.eval, Retrieval)}
    each = max(4, num_pictures // max(1, len(named)))
    queries = max(4, num_queries // max(1, len(searched)))
    return Answers(
        {prefix: found.predict(params, each) for prefix, found in named.items()},
        {p: find_pictures(found, params, num_queries=queries) for p, found in searched.items()},
    )


def write_report(workdir: str | os.PathLike[str], answers: Answers | None = None) -> Path:
    """Writes `<workdir>/report.html` from what the run left in its workdir; the lead calls it.

    Curves come from metrics.jsonl and evals.jsonl, the table from results.json, config and
    parameter counts from the newest checkpoint's manifest. A part whose file is not there is left
    out of the page.

    Returns:
        The path of the report.

    Raises:
        ValueError: the workdir holds nothing to report.
    """
    workdir, answers = Path(workdir).expanduser(), answers or Answers()
    training, evals = read_curves(workdir / TRAIN_FILE), read_curves(workdir / EVALS_FILE)
    document = read_document(workdir)
    results = read_results(workdir)
    names = {result.name.prefix: result.name for result in results_in(document)}
    manifest = None
    with contextlib.suppress(ValueError):
        manifest = choose_step(workdir).manifest
    if not (training or results or manifest or any(answers)):
        raise ValueError(
            f"{workdir} holds no {TRAIN_FILE}, no {RESULTS} and no checkpoint: there is nothing "
            "to report; give the workdir of a run"
        )
    num_parameters = _count_parameters(manifest)
    name = manifest.contract.get("model", {}).get("name") if manifest else None
    run = workdir.resolve().name
    text = report_page.page(
        title=run if name in (None, run) else f"{run}: {name}",
        subtitle=_subtitle(training, results, num_parameters),
        sections=[
            report_page.tiles(results, names),
            report_page.charts(training, evals, names),
            drift_table(evals, names),
            *(report_answers.answers(p, s, names) for p, s in answers.predictions.items()),
            *(report_answers.finds(p, s, names) for p, s in answers.found.items()),
            *(found_section(result, names) for result in results_in(document)),
            report_page.results_tables(results, names),
            report_page.details(
                num_parameters,
                manifest.config if manifest else {},
                _facts(manifest, document) | _left_out(evals) | _time(workdir),
            ),
        ],
        footer=_FOOTER,
    )
    write_file(workdir / REPORT, text)
    return workdir / REPORT


def results_page(
    document: Mapping[str, Any], title: str, open_source: Callable[[str], DataSource]
) -> str:
    """Writes results, as `clipjax.evals.running.results_document` has them, as a page of HTML.

    Args:
        open_source: see `examples_section`.
    """
    results = results_in(document)
    numbers = {name: value for name, value in document.items() if isinstance(value, int | float)}
    names = {result.name.prefix: result.name for result in results}
    facts = _facts_of_results(document)
    return report_page.page(
        title=title,
        subtitle=f"{document.get('model', '')}, step {document['step']:,}",
        sections=[
            report_page.tiles(numbers, names),
            *(
                section
                for result in results
                for section in (
                    found_section(result, names),
                    examples_section(result, open_source),
                )
            ),
            report_page.results_tables(numbers, names),
            report_page.details({}, {}, facts),
        ],
        footer=_FOOTER,
    )


def results_pictures(document: Mapping[str, Any]) -> dict[str, str]:
    """Draws what stands on `results_page`: name -> a file of SVG."""
    found = all_figures(results_in(document))
    return {name: svg_file(drawn, _SVG_STYLE) for name, drawn in found}


def read_curves(path: Path) -> dict[str, Points]:
    """Reads metric -> (step, value) from JSON lines; {} if there is no such file.

    A step that was written twice counts as written last. A line that is cut off, as by a crash
    while it was written, is left out with a warning.
    """
    if not path.exists():
        return {}
    by_step: dict[int, dict[str, float]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            fields = parse_fields(line.decode("utf-8"))
            values = {n: float(v) for n, v in fields.items() if isinstance(v, int | float)}
            by_step.setdefault(int(fields["step"]), {}).update(values)
        except (
            *(ValueError, KeyError, TypeError, AttributeError),
            *(ArithmeticError, RecursionError),
        ) as error:
            logging.warning("%s, line %d is left out: %s", path, number, error)
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for step, fields in sorted(by_step.items()):
        for name, value in fields.items():
            if name != "step":
                curves[name].append((step, value))
    return dict(curves)


def package_commit() -> str | None:
    """Finds the commit of this package: of its checkout, or as launch/tpu_pod.sh or pip noted it.

    Returns:
        Its name; None if unknown.
    """
    root = Path(clipjax.__file__).resolve().parents[1]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            return found.stdout.strip()
        except subprocess.TimeoutExpired:
            logging.info("the commit is not known: git has not said it within 60 s")
            return None
        except (OSError, subprocess.SubprocessError) as error:
            logging.info("the commit is not known: %s", error)
            return None
    with contextlib.suppress(OSError):
        return (root / "COMMIT").read_text(encoding="utf-8").strip()
    try:
        noted = importlib.metadata.distribution("clipjax").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    return json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")


def _count_parameters(manifest: Manifest | None) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for leaf in manifest.leaves if manifest else ():
        root, *names = leaf.name.split("/")
        if root == "params":
            counts[names[0].replace("_", " ")] += int(np.prod(leaf.shape))
    if counts:
        counts = {"all parameters": sum(counts.values()), **counts}
    return dict(counts)


def _subtitle(
    training: Mapping[str, Points], results: Mapping[str, float], num_parameters: Mapping[str, int]
) -> str:
    step = results.get("step") or (training["loss"][-1][0] if training.get("loss") else None)
    rates = [rate for _, rate in training.get("samples_per_s", ())]
    parts = [
        f"{num_parameters['all parameters'] / 1e6:,.1f} M parameters" if num_parameters else "",
        f"{step:,.0f} steps" if step else "",
        f"{format_number(float(np.median(rates)))} samples/s" if rates else "",
        f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    ]
    return " · ".join(part for part in parts if part)


def _left_out(evals: Mapping[str, Points]) -> dict[str, str]:
    """What `config.eval_time_fraction` cost."""
    count = sum(value for _, value in evals.get(LEFT_OUT, ()))
    return {"evaluations left out for time": f"{count:,.0f}"} if count else {}


def _time(workdir: Path) -> dict[str, str]:
    found = goodput.read(workdir)
    return {"time": goodput.describe(found)} if found else {}


def _facts(manifest: Manifest | None, document: Mapping[str, Any]) -> dict[str, str]:
    facts = {"clipjax": f"{clipjax.__version__}, commit {package_commit() or 'not known'}"}
    if manifest is None:
        return facts
    saved = document.get(SAVED)
    facts["checkpoint"] = f"step {manifest.step:,}" + (f", SHA-256 {saved[:16]}…" if saved else "")
    facts["global batch"] = f"{manifest.global_batch_size:,}"
    facts["seed"] = str(manifest.seed)
    facts["config"] = f"SHA-256 {manifest.config_sha256[:16]}…"
    if manifest.dataset_fingerprint:
        facts["dataset"] = f"fingerprint {manifest.dataset_fingerprint[:16]}…"
    facts |= _facts_of_results(document)
    versions = {name: v for name, v in manifest.versions.items() if name != "clipjax"}
    facts["libraries"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return facts


def _facts_of_results(document: Mapping[str, Any]) -> dict[str, str]:
    """What the numbers depend on."""
    facts = {}
    for part in ("preprocess", "tokenizer"):
        fields = document.get(part) or {}
        if fields:
            facts[part] = ", ".join(f"{name} {_short(value)}" for name, value in fields.items())
    for result in results_in(document):
        if result.about:
            facts[f"{result.name.prefix}, SPEC {result.name.spec}"] = "; ".join(
                f"{name.replace('_', ' ')}: {_short(value)}"
                for name, value in result.about.items()
                if name != "tables"
            )
    return facts


def _short(value: Any) -> str:
    """A value for the table of facts: digests by their first digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    text = str(value)
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:16]}…" if is_digest else text
