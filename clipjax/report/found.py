"""The parts of the report that show what stands beside an evaluation's metrics, as pictures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from clipjax.evals.running import EvalResult
from clipjax.printable import html_text as escape
from clipjax.printable import html_words
from clipjax.report.figures import Bar, bars, confusion, reliability, share_bars
from clipjax.report.page import Names, column_title, dataset_title, has_mean, percent, scrolling

_ENDS = 12  # classes, or groups, that a picture shows of either end
_CONFUSED = 10  # pairs of classes
_CLASS_COLUMNS = {
    "examples": "pictures",
    "recall": "recall",
    "predicted": "answers",
    "precision": "precision",
    "average_precision": "average precision",
}
# Metrics that are shares, and which of these a picture shows, by kind of evaluation.
_SHARES = {
    "knn": ("top1", "top5", "mean_per_class_recall"),
    "linear_probe": ("top1", "top5", "mean_per_class_recall"),
    "compositional": ("text_score", "image_score", "group_score", "text_score_category_mean"),
    "winogavil": ("jaccard", "jaccard_5_6", "jaccard_10_12"),
}


def found_section(result: EvalResult, names: Names) -> str:
    """Shows pictures and tables of one result; nothing of one that is a number alone."""
    try:
        figures = dict(figures_of(result))
        per_class = (result.about.get("tables") or {}).get("per_class")
        folded = _classes(per_class) if per_class else ""
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        logging.warning("the tables of %s cannot be shown: %s", result.name.prefix, error)
        return ""
    if not figures:
        return ""
    kind = result.name.kind.replace("_", " ")
    title = escape(f"{kind}: {dataset_title(result.name.prefix, names)}")
    body = f'<div class="charts found">{"".join(figures.values())}</div>{folded}'
    if has_mean(result.name.prefix, names):  # one language of many
        return f'<details class="card"><summary>{title}</summary>{body}</details>'
    return f"<h2>{title}</h2>{body}"


def figures_of(result: EvalResult) -> Iterator[tuple[str, str]]:
    """Draws what a result can be shown by: (name of a file, figure), those that are not empty."""
    metrics, tables = result.metrics, result.about.get("tables") or {}
    drawn = {
        "retrieval": _recalls(metrics),
        "few_shot": _shots(metrics) if result.name.kind == "few_shot" else "",
        "scores": share_bars(
            "Scores",
            {
                column_title(name): metrics[name]
                for name in _SHARES.get(result.name.kind, ())
                if name in metrics
            },
        ),
    }
    per_class = tables.get("per_class") or []
    if per_class and "average_precision" in per_class[0]:
        drawn["per_class"] = _precisions(per_class)
    elif max((each["examples"] for each in per_class), default=0) > 1:
        drawn["per_class"] = _recall_by_class(per_class)
        matrix = tables.get("confusion") or {}
        drawn["confusion"] = confusion(matrix, [each["name"] for each in per_class])
        drawn["confused"] = _confused(matrix, per_class)
    if tables.get("sweep"):
        rows = [Bar(f"{each['strength']:.3g}", each["accuracy"]) for each in tables["sweep"]]
        drawn["sweep"] = bars("Accuracy on validation by lambda", rows)
    if tables.get("reliability"):
        drawn["reliability"] = reliability(tables["reliability"], metrics.get("ece"))
    for column, groups in (tables.get("groups") or {}).items():
        drawn[f"by_{column}"] = _groups(column, groups)
    if tables.get("bias"):
        drawn["bias"] = _bias(tables["bias"])
        drawn["flips"] = _flips(tables["bias"])
    return ((name, text) for name, text in drawn.items() if text)


def all_figures(results: Iterable[EvalResult]) -> Iterator[tuple[str, str]]:
    """Draws all figures of all results, by the name of a file: `zero_shot_pets_reliability`."""
    for result in results:
        for name, drawn in figures_of(result):
            yield f"{result.name.prefix.replace('/', '_')}_{name}", drawn


def _recalls(metrics: Mapping[str, float]) -> str:
    """Bars of recall at k, both ways."""
    rows = {
        f"{way}, {k}": metrics[name]
        for way, side in (("text to image", "image"), ("image to text", "text"))
        for k in (1, 5, 10)
        if (name := f"{side}_retrieval_recall@{k}") in metrics
    }
    return share_bars("Recall among the k best", rows)


def _shots(metrics: Mapping[str, float]) -> str:
    found = {
        int(name.split("_")[1]): name
        for name in metrics
        if name.startswith("top1_") and name.endswith("_shot")
    }
    rows = [
        Bar(f"{shots} a class", metrics[name], metrics.get(f"{name}_deviation", 0.0))
        for shots, name in sorted(found.items())
    ]
    return bars("Top-1 by pictures to learn from", rows, legend="mean and deviation over draws")


def _recall_by_class(classes: Sequence[Mapping[str, Any]]) -> str:
    there = [each for each in classes if each["examples"]]
    there.sort(key=lambda each: (each["recall"], each["name"]))
    rows = [
        Bar(e["name"], e["recall"], note=f"{e['hits']:,} of {e['examples']:,}")
        for e in _ends(there)
    ]
    return bars("Recall by class", rows, legend=_of_ends(there, "classes"))


def _precisions(classes: Sequence[Mapping[str, Any]]) -> str:
    there = [each for each in classes if each["examples"]]
    there.sort(key=lambda each: (each["average_precision"], each["name"]))
    rows = [Bar(e["name"], e["average_precision"]) for e in _ends(there)]
    return bars("Average precision by class", rows, legend=_of_ends(there, "classes"))


def _groups(column: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    there = sorted(groups.items(), key=lambda item: (item[1]["top1"], item[0]))
    rows = [Bar(name, e["top1"], note=f"of {e['examples']:,}") for name, e in _ends(there)]
    return bars(f"Top-1 by {column}", rows, legend=_of_ends(there, "groups"))


def _bias(groups: Sequence[Mapping[str, Any]]) -> str:
    rows = [Bar(e["group"], e["accuracy"], note=f"of {e['num_examples']:,}") for e in _ends(groups)]
    return bars("Accuracy by group, with its own word", rows, legend=_of_ends(groups, "groups"))


def _flips(groups: Sequence[Mapping[str, Any]]) -> str:
    there = sorted(groups, key=lambda each: -each["flips"])
    rows = [Bar(e["group"], e["flips"]) for e in _ends(there)]
    return bars("Answers that change with another group's word", rows)


def _confused(matrix: Mapping[str, Mapping[str, int]], classes: Sequence[Mapping[str, Any]]) -> str:
    """Bars of the wrong answers that are most of their class."""
    wrong = [
        (count / sum(answers.values()), count, int(row), int(column))
        for row, answers in matrix.items()
        for column, count in answers.items()
        if row != column
    ]
    rows = [
        Bar(f"{classes[row]['name']} → {classes[column]['name']}", share, note=f"{count:,}")
        for share, count, row, column in sorted(wrong, reverse=True)[:_CONFUSED]
    ]
    return bars("Most confused", rows, legend="share of the class that is called so", letters=34)


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    """All classes, folded away."""
    columns = [name for name in _CLASS_COLUMNS if name in classes[0]]
    heads = "".join(f'<th class="number">{_CLASS_COLUMNS[name]}</th>' for name in columns)
    rows = "".join(
        f"<tr><th>{html_words(each['name'])}</th>"
        + "".join(f'<td class="number">{_cell(each[name])}</td>' for name in columns)
        + "</tr>"
        for each in classes
    )
    table = f"<thead><tr><th>class</th>{heads}</tr></thead><tbody>{rows}</tbody>"
    return (
        f'<details class="card"><summary>All {len(classes):,} classes</summary>'
        f"{scrolling(table, 'classes', kind='')}</details>"
    )


def _cell(value: float | None) -> str:
    """A count, or a share, which is a float."""
    return "" if value is None else percent(value) if isinstance(value, float) else f"{value:,}"


def _ends(rows: Sequence[Any]) -> list[Any]:
    """All of a few, of many the first and the last."""
    return list(rows) if len(rows) <= 2 * _ENDS else [*rows[:_ENDS], *rows[-_ENDS:]]


def _of_ends(rows: Sequence[Any], what: str) -> str:
    few = len(rows) <= 2 * _ENDS
    return "" if few else f"the {_ENDS} lowest and the {_ENDS} highest of {len(rows):,} {what}"
