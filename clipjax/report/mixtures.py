"""The page of a mixture of checkpoints: what was tried, what it is worth, and what was written."""

from collections.abc import Mapping, Sequence
from typing import Any

import clipjax
from clipjax.printable import html_text as escape
from clipjax.report.curves import NUM_COLOURS, chart
from clipjax.report.page import MAIN_METRICS, page, percent, scrolling

Tried = Sequence[Mapping[str, Any]]


def main_metrics(tried: Tried, *wanted: str) -> list[str]:
    """The metrics that are shown of each mixture: the main one of every dataset, and those wanted.

    Args:
        tried: mixtures, each with its `metrics`.
    """
    known = tried[0]["metrics"] if tried else {}
    return [name for name in known if name in wanted or name.rpartition("/")[2] in MAIN_METRICS]


def mixture_page(
    title: str,
    tried: Tried,
    written: Mapping[str, float],
    metric: str | None,
    keep: Mapping[str, float],
) -> str:
    """Writes the curve between two checkpoints, and a table of all mixtures that were evaluated.

    Args:
        title: of the page.
        tried: mixtures in order: `shares` by path, `metrics`, and of a line `alpha`.
        written: shares of what was written.
        metric: that chose.
        keep: metric -> the share of the first checkpoint's that was to be kept.
    """
    names = main_metrics(tried, *([metric] if metric else []), *keep)
    line = sorted((entry for entry in tried if "alpha" in entry), key=lambda x: x["alpha"])
    curves = {n: [(entry["alpha"], entry["metrics"][n]) for entry in line] for n in names}
    chunks = [names[i : i + NUM_COLOURS] for i in range(0, len(names), NUM_COLOURS)]
    charts = "".join(
        chart(
            "From the first checkpoint (0) to the second (1)",
            {name: curves[name] for name in chunk},
            percent=True,
            over="alpha",
        )
        for chunk in (chunks if len(line) > 1 else ())
    )
    alone: list[Mapping[str, float]] = [e["metrics"] for e in tried if len(e["shares"]) == 1]
    first = alone[0] if alone else {}
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = "".join(_row(entry, names, first, keep, written) for entry in tried)
    rule = f"chosen by {metric}" if metric else "nothing was measured"
    rule += "".join(f", of those that keep {percent(s)} of {name}" for name, s in keep.items())
    table = f"<thead><tr><th>mixture</th>{head}<th></th></tr></thead><tbody>{rows}</tbody>"
    return page(
        title=title,
        subtitle=rule,
        sections=[
            f'<div class="charts">{charts}</div>' if charts else "",
            f"<h2>Mixtures</h2>{scrolling(table, 'mixtures')}" if tried else "",
        ],
        footer=f"Written by clipjax {clipjax.__version__}.",
    )


def _row(
    entry: Mapping[str, Any],
    names: Sequence[str],
    first: Mapping[str, float],
    keep: Mapping[str, float],
    written: Mapping[str, float],
) -> str:
    what = " + ".join(f"{share:.4g} x {path}" for path, share in entry["shares"].items())
    what = f"alpha {entry['alpha']:.4g}" if "alpha" in entry else what
    cells = ""
    for name in names:
        value = entry["metrics"][name]
        kept = f" ({percent(value / first[name])} kept)" if name in keep and first[name] else ""
        cells += f'<td class="number">{escape(percent(value) + kept)}</td>'
    mark = "written" if entry["shares"] == {k: v for k, v in written.items() if v} else ""
    return f"<tr><th>{escape(what)}</th>{cells}<td>{mark}</td></tr>"
