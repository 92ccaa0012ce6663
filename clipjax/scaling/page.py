"""The page of fitted laws: one file that loads nothing from elsewhere."""

from collections.abc import Iterator, Sequence

import numpy as np

import clipjax
from clipjax.printable import html_text as escape
from clipjax.report.page import page, scrolling
from clipjax.report.scatter import Series, scatter
from clipjax.scaling.evidence import Observation
from clipjax.scaling.expecting import Expectation
from clipjax.scaling.fitting import Fit, ScalingLaw
from clipjax.scaling.telling import cost_text, formula, notes, reached, verdict

_POINTS = 40  # of a line


def scaling_page(fit: Fit, expectation: Expectation | None = None) -> str:
    """Writes the laws, the runs that they are of, and what a config should reach."""
    evidence = fit.evidence
    return page(
        title=f"Scaling laws of {evidence.metric}",
        subtitle=f"{evidence.about}; {evidence.source}",
        sections=[
            _expectation(fit, expectation) if expectation else "",
            f'<h2>Laws</h2><div class="charts">{"".join(_charts(fit, expectation))}</div><br>',
            _laws(fit),
            f"<h2>Fitted on</h2>{_runs(fit)}",
        ],
        footer=(
            f"Written by clipjax {clipjax.__version__}. Intervals: {100 * fit.level:g} %, from "
            f"{fit.num_resamples:,} resamples of the runs, seed {fit.seed}."
        ),
    )


def _expectation(fit: Fit, found: Expectation) -> str:
    rows = "".join(
        f"<tr><th>{escape(each.law.title)}</th><td>{escape(verdict(fit, each))}</td></tr>"
        for each in found.expected
    )
    rows += (
        f"<tr><th>takes</th><td>{found.samples:,} pairs x {found.gmac:.3g} GMAC of a forward pass"
        f"{'' if found.cost is None else '; ' + escape(cost_text(found.cost))}</td></tr>"
    )
    return (
        f"<h2>Expected of {escape(found.name)}</h2>"
        '<p class="lede">For the recipe and the data of the runs that were fitted, and no others.'
        f"</p>{scrolling(f'<tbody>{rows}</tbody>', 'expectation')}"
    )


def _laws(fit: Fit) -> str:
    rows = "".join(
        f"<tr><th>{escape(law.title)}</th><td><code>{escape(formula(law))}</code></td>"
        f"<td>{escape('; '.join(notes(fit, law)))}</td></tr>"
        for law in fit.laws
    )
    rows += "".join(
        f"<tr><th>{escape(title)}</th><td>no law</td><td>{escape(why)}</td></tr>"
        for title, why in fit.missing.items()
    )
    return scrolling(f"<tbody>{rows}</tbody>", "laws")


def _charts(fit: Fit, expectation: Expectation | None) -> Iterator[str]:
    compute = fit.laws[0]
    runs = fit.evidence.observations
    groups = dict.fromkeys(run.group for run in runs)
    series = [
        Series(group or "runs", _points(fit, [r for r in runs if r.group == group], "compute"))
        for group in groups
    ]
    low, high = compute.quantities[0].low, compute.quantities[0].high
    series.append(Series("the law", line=_line(compute, low, high)))
    if expectation and expectation.expected[0].is_possible:
        first, at = expectation.expected[0], expectation.samples * expectation.gmac
        if first.outside:
            ends = (at, low) if at < low else (high, at)
            series.append(Series("beyond its runs", line=_line(compute, *ends), dashed=True))
        point = (at, first.error, f"{expectation.name}: {reached(fit, first.error)}")
        series.append(Series(expectation.name, [point], whisker=(at, first.low, first.high)))
    percent = fit.evidence.is_share
    title, x_name = f"Error by {compute.title}", "GMAC of all forward passes"
    yield scatter(title, x_name, series, percent=percent)
    for law in fit.laws[1:]:
        title, x_name = f"Error by {law.title}", "pairs seen; a colour each size"
        yield scatter(title, x_name, _by_size(fit, law), percent=percent)


def _points(fit: Fit, runs: Sequence[Observation], x: str) -> list[tuple[float, float, str]]:
    """With what a pointer shows of them."""
    return [(getattr(r, x), r.error, f"{r.name}: {reached(fit, r.error)}") for r in runs]


def _line(law: ScalingLaw, low: float, high: float) -> list[tuple[float, float]]:
    """The law of compute from one compute to another."""
    xs = np.geomspace(low, high, _POINTS)
    return list(zip(xs.tolist(), law.fitted.law.error(xs[:, None]).tolist(), strict=True))


def _by_size(fit: Fit, law: ScalingLaw) -> list[Series]:
    runs = [run for run in fit.evidence.observations if run.group == law.group]
    samples = np.geomspace(min(r.samples for r in runs), max(r.samples for r in runs), _POINTS)
    found = []
    for size in sorted({run.gmac for run in runs}):
        x = np.column_stack([np.full(_POINTS, size), samples])
        line = zip(samples.tolist(), law.fitted.law.error(x).tolist(), strict=True)
        mine = _points(fit, [run for run in runs if run.gmac == size], "samples")
        found.append(Series(f"{size:.3g} GMAC", mine, line=list(line)))
    return found


def _runs(fit: Fit) -> str:
    used = {name for law in fit.laws[:1] for name in law.names}
    head = "".join(
        f'<th class="number">{name}</th>' for name in ("pairs", "GMAC a pair", "GMAC in all")
    )
    rows = "".join(
        f"<tr><th>{escape(run.name)}</th><td>{escape(run.group)}</td>"
        f'<td class="number">{run.samples:,.0f}</td><td class="number">{run.gmac:.4g}</td>'
        f'<td class="number">{run.compute:.3g}</td>'
        f'<td class="number">{escape(reached(fit, run.error))}</td>'
        f"<td>{'compute, too' if run.name in used else ''}</td></tr>"
        for run in fit.evidence.observations
    )
    left = "".join(
        f"<tr><th>{escape(name)}</th><td colspan=6>left out: {escape(reason)}</td></tr>"
        for reason, names in fit.evidence.left_out.items()
        for name in names
    )
    return scrolling(
        f"<thead><tr><th>run</th><th></th>{head}"
        f'<th class="number">{escape(fit.evidence.metric)}</th><th>in the law of</th></tr></thead>'
        f"<tbody>{rows}{left}</tbody>",
        "runs",
    )
