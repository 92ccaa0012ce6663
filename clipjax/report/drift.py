"""What a fine-tune has kept: every accuracy beside that of step 0."""

from collections.abc import Mapping

from clipjax.printable import html_text as escape
from clipjax.report.curves import Points
from clipjax.report.page import MAIN_METRICS, Names, column_title, dataset_title, percent, scrolling


def drift_table(evals: Mapping[str, Points], names: Names) -> str:
    """Compares the last value of each main metric with that at step 0, where there is one.

    A run that starts from a checkpoint evaluates it before its first step: of a set that it does
    not train on, what has become of that number is its drift.

    Args:
        evals: metric -> (step, value) in order, shares.
        names: of the evaluations.
    """
    rows = ""
    for name, points in evals.items():
        prefix, _, metric = name.rpartition("/")
        if metric not in MAIN_METRICS or len(points) < 2 or points[0][0] != 0:
            continue
        before, after = points[0][1], points[-1][1]
        kept = percent(after / before) if before else ""
        cells = (percent(before), percent(after), f"{100 * (after - before):+.1f}", kept)
        rows += f"<tr><th>{escape(dataset_title(prefix, names))}, {escape(column_title(metric))}"
        rows += "</th>" + "".join(f'<td class="number">{x}</td>' for x in cells) + "</tr>"
    if not rows:
        return ""
    columns = ("step 0", "now", "points", "of step 0")
    head = "".join(f'<th class="number">{x}</th>' for x in columns)
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>"
    return f"<h2>Since step 0</h2>{scrolling(table, 'since step 0')}"
