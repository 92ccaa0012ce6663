"""The parts of the report as HTML. All that comes from data or config is escaped here."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from clipjax.evals.naming import EvalName
from clipjax.printable import html_text as escape
from clipjax.redaction import redact_tree
from clipjax.report.curves import NUM_COLOURS, Points, chart, format_number

# `<kind>/<dataset>` -> what it is of; one that is not there is shown as it is written.
Names = Mapping[str, EvalName]

# Training metrics that get a chart, in this order: title, metric -> name in the legend, percent.
_TRAINING_CHARTS = (
    ("Loss", {"loss": "training"}, False),
    (
        "Accuracy inside the batch",
        {"image_to_text_top1": "image to text", "text_to_image_top1": "text to image"},
        True,
    ),
    (
        "Cosine of pairs",
        {"positive_cosine": "matching", "negative_cosine": "not matching"},
        False,
    ),
    ("Logit scale (inverse temperature)", {"logit_scale": "scale"}, False),
    ("Learning rate", {"learning_rate": "rate"}, False),
    ("Gradient norm", {"grad_norm": "norm"}, False),
    ("Throughput", {"samples_per_s": "samples/s"}, False),
)
_ACCURACIES = ("top1", "top5", "recall@")  # parts of metric names that are curves of accuracy
_NO_SHARES = ("strength", "clipscore", "refclipscore", "score_gap")
_COLUMNS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class_recall": "mean per class",
    "num_examples": "pictures",
    "num_classes": "names",
    "num_images": "pictures",
    "num_texts": "captions",
    "num_rows": "rows",
}


def page(*, title: str, subtitle: str, sections: Sequence[str], footer: str) -> str:
    """Puts sections (HTML) under a title (text) in the template."""
    return Template(_packaged("template.html")).substitute(
        style=style(),
        title=escape(title),
        subtitle=escape(subtitle),
        body="\n".join(section for section in sections if section),
        footer=escape(footer),
    )


def style() -> str:
    """The one style of all pages: CSS, light and dark, on a phone and wide."""
    return _packaged("style.css")


def _packaged(name: str) -> str:
    return resources.files("clipjax.report").joinpath(name).read_text(encoding="utf-8")


def percent(value: float) -> str:
    """Writes a share in percent, with one digit after the point; small ones with two."""
    return f"{100 * value:.2f} %" if 0 < value < 0.01 else f"{100 * value:.1f} %"


def tiles(results: Mapping[str, float], names: Names) -> str:
    """The headline numbers, with what chance would give; of many languages their mean alone."""
    found = []
    grouped = _by_eval(results)
    for prefix, metrics in grouped.items():
        if has_mean(prefix, names):
            continue
        for name in ("top1", "top5", "image_retrieval_recall@1", "text_retrieval_recall@1"):
            if name not in metrics:
                continue
            of = metrics.get("num_classes" if name.startswith("top") else "num_images")
            share = min(1.0, (5 if name == "top5" else 1) / of) if of else None
            chance = "" if share is None or "text_" in name else f"chance {percent(share)}"
            found.append(
                f'<div class="tile card"><span>{escape(column_title(name))}</span>'
                f"<b>{percent(metrics[name])}</b>"
                f"<span>{escape(dataset_title(prefix, names))}</span><span>{chance}</span></div>"
            )
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def charts(training: Mapping[str, Points], evals: Mapping[str, Points], names: Names) -> str:
    """Curves of the training metrics and of the evaluations over the steps."""
    last = max((points[-1][0] for points in (*training.values(), *evals.values())), default=0)
    drawn = [
        chart(
            title,
            {label: training[name] for name, label in metrics.items() if name in training},
            percent=share,
            last_step=last,
        )
        for title, metrics, share in _TRAINING_CHARTS
    ]
    drawn[1:1] = [
        chart(title, lines, percent=True, last_step=last)
        for title, lines in _accuracies(evals, names).items()
    ]
    drawn = [figure for figure in drawn if figure]
    return f'<h2>Training</h2><div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _accuracies(evals: Mapping[str, Points], names: Names) -> dict[str, dict[str, Points]]:
    """Title -> lines: a chart a kind of evaluation, of at most as many lines as have a colour."""
    kinds: dict[str, dict[str, Points]] = defaultdict(dict)
    for name, points in evals.items():
        prefix, _, metric = name.rpartition("/")
        if prefix and any(part in metric for part in _ACCURACIES) and not has_mean(prefix, names):
            kinds[_kind(prefix)][f"{dataset_title(prefix, names)} {column_title(metric)}"] = points
    found = {}
    for kind, lines in kinds.items():
        labels = list(lines)
        chunks = [labels[i : i + NUM_COLOURS] for i in range(0, len(labels), NUM_COLOURS)]
        for number, chunk in enumerate(chunks, start=1):
            of = f", {number} of {len(chunks)}" if len(chunks) > 1 else ""
            found[f"Evaluation: {kind}{of}"] = {name: lines[name] for name in chunk}
    return found


def results_tables(results: Mapping[str, float], names: Names) -> str:
    """All results, one table for each kind of evaluation."""
    kinds: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    grouped = _by_eval(results)
    means_last = sorted(grouped, key=lambda p: p in names and names[p].is_mean)
    for prefix in means_last:
        kinds[prefix.split("/", 1)[0]][prefix] = grouped[prefix]
    parts = []
    for kind, evals in kinds.items():
        columns = list(dict.fromkeys(name for metrics in evals.values() for name in metrics))
        # Shares first, counts after them, each in the order of the table above.
        columns.sort(key=lambda name: name.startswith("num_"))
        head = "".join(f'<th class="number">{escape(column_title(name))}</th>' for name in columns)
        rows = "".join(
            f"<tr><th>{escape(dataset_title(prefix, names))}</th>"
            + "".join(f'<td class="number">{_cell(n, metrics.get(n))}</td>' for n in columns)
            + "</tr>"
            for prefix, metrics in evals.items()
        )
        parts.append(
            scrolling(
                f"<thead><tr><th>{escape(_kind(kind))}</th>{head}</tr></thead><tbody>{rows}</tbody>",
                _kind(kind),
            )
        )
    return f"<h2>Results</h2>{'<br>'.join(parts)}" if parts else ""


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.endswith("_median_rank") or name in _NO_SHARES:
        return f"{value:,g}" if value >= 1 else format_number(value)
    return f"{value:,.0f}" if name.startswith("num_") else percent(value)


def details(
    num_parameters: Mapping[str, int], config: Mapping[str, Any], run: Mapping[str, str]
) -> str:
    """Parameter counts, what the run was, and the whole config folded away."""
    counts = "".join(
        f'<tr><th>{escape(name)}</th><td class="number">{count:,}</td></tr>'
        for name, count in num_parameters.items()
    )
    facts = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in run.items()
    )
    fields = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td><code>{escape(value)}</code></td></tr>"
        for name, value in _flatten(redact_tree(config))
    )
    tables = [
        scrolling(f"<tbody>{rows}</tbody>", label)
        for rows, label in ((facts, "the run"), (counts, "parameters"))
        if rows
    ]
    folded = (
        f'<details class="card"><summary>The whole config</summary>'
        f"{scrolling(f'<tbody>{fields}</tbody>', 'the whole config', kind='')}</details>"
        if fields
        else ""
    )
    if not tables and not folded:
        return ""
    return f'<h2>The run</h2><div class="columns">{"".join(tables)}</div>{folded}'


def scrolling(rows: str, label: str, *, kind: str = "card ") -> str:
    """A table that scrolls sideways where it does not fit, also by the keyboard, and shows it."""
    return (
        f'<div class="{kind}scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table>{rows}</table></div>"
    )


def _by_eval(results: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Groups `<kind>/<dataset>/<metric>` by what stands before the metric."""
    grouped: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in results.items():
        if "/" in name:
            prefix, metric = name.rsplit("/", 1)
            grouped[prefix][metric] = value
    order = list(_COLUMNS)
    rank = {name: number for number, name in enumerate(order)}
    return {
        prefix: dict(sorted(metrics.items(), key=lambda m: (rank.get(m[0], -1), _natural(m[0]))))
        for prefix, metrics in grouped.items()
    }


def has_mean(prefix: str, names: Names) -> bool:
    """Whether this is one language of a dataset whose mean over the languages is there too."""
    name = names.get(prefix)
    return (
        name is not None
        and len(name.languages) == 1
        and any(
            other.is_mean and (other.kind, other.dataset) == (name.kind, name.dataset)
            for other in names.values()
        )
    )


def _natural(name: str) -> tuple[str, int]:
    """Sorts recall@5 before recall@10."""
    text, _, number = name.partition("@")
    return text, int(number) if number.isdecimal() and len(number) < 10 else 0


def _kind(prefix: str) -> str:
    return prefix.split("/", 1)[0].replace("_", "-")


def dataset_title(prefix: str, names: Names) -> str:
    """Names the dataset of `<kind>/<dataset>` for people."""
    name = names.get(prefix)
    if name is None:
        return prefix.split("/", 1)[-1]
    if not name.languages:
        return name.dataset
    return f"{name.dataset}, {'mean of all languages' if name.is_mean else name.languages[0]}"


MAIN_METRICS = ("top1", "text_to_image_recall@1", "image_to_text_recall@1")
"""The metrics that stand for a dataset where there is room for one number."""


def column_title(metric: str) -> str:
    """Names a metric for people."""
    if metric in _COLUMNS:
        return _COLUMNS[metric]
    return (
        metric.replace("image_retrieval_recall@", "text to image R@")
        .replace("text_retrieval_recall@", "image to text R@")
        .replace("_", " ")
    )


def _flatten(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key in sorted(node):
            yield from _flatten(node[key], f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)) and any(isinstance(item, Mapping) for item in node):
        for number, item in enumerate(node):
            yield from _flatten(item, f"{path}[{number}]")
    else:
        yield path, str(node)
