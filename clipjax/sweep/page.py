"""The page of a sweep: one file that loads nothing from elsewhere."""

from collections.abc import Sequence
from urllib.parse import quote

import clipjax
from clipjax.printable import html_text as escape
from clipjax.report.curves import NUM_COLOURS, chart
from clipjax.report.page import page
from clipjax.report.writing import REPORT
from clipjax.sweep.running import FINISHED, Outcome
from clipjax.sweep.table import cells, header, ranked


def sweep_page(title: str, outcomes: Sequence[Outcome], metrics: Sequence[str]) -> str:
    """Writes the table and the losses of a sweep's runs, the best run first.

    Args:
        title: of the page.
        outcomes: of all runs.
        metrics: of the table; the first one ranks them.
    """
    order = ranked(outcomes, metrics[0])
    heads = "".join(f"<th>{escape(name)}</th>" for name in (*header(order, metrics), ""))
    rows = "".join(_row(outcome, metrics) for outcome in order)
    done = sum(outcome.state == FINISHED for outcome in order)
    curves = {", ".join(value for _, value in o.run.point.values): o.loss for o in order if o.loss}
    names = list(curves)
    chunks = [names[i : i + NUM_COLOURS] for i in range(0, len(names), NUM_COLOURS)]
    charts = [
        chart(
            "Loss" if len(chunks) == 1 else f"Loss, {n} of {len(chunks)}", {k: curves[k] for k in c}
        )
        for n, c in enumerate(chunks, 1)
    ]
    failed = "".join(
        f"<p><b>{escape(o.run.point.name)}</b>: {escape(o.why)}</p>" for o in order if o.why
    )
    return page(
        title=title,
        subtitle=f"{done} of {len(order)} runs finished; ranked by {metrics[0].removeprefix('-')}",
        sections=[
            f'<div class="card scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>",
            f"<h2>Not finished</h2>{failed}" if failed else "",
            f'<h2>Training</h2><div class="charts">{"".join(charts)}</div>' if charts else "",
        ],
        footer=f"Written by clipjax {clipjax.__version__}.",
    )


def _row(outcome: Outcome, metrics: Sequence[str]) -> str:
    link = ""
    if (outcome.run.workdir / REPORT).is_file():
        link = f'<a href="{escape(quote(f"{outcome.run.workdir.name}/{REPORT}"))}">report</a>'
    return (
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells(outcome, metrics))
        + f"<td>{link}</td></tr>"
    )
