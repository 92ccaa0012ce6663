"""Points and lines over two logarithmic axes as inline SVG, coloured by the page's style sheet."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from clipjax.printable import html_text
from clipjax.report.curves import NUM_COLOURS, Points, format_number

_WIDTH, _HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40
_MOST_TICKS = 7
_MARKS = ((1, 2, 5), (1, 3), (1,))  # of a decade: the most that do not crowd an axis
_MANY_MARKS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)  # of an axis of less than a decade


class Series(NamedTuple):
    """Points of one colour.

    Attributes:
        name: in the legend.
        points: (x, y) above 0, with a name each.
        line: (x, y) above 0, in order.
        dashed: whether the line is of what was not fitted.
        whisker: (x, least y, most y) above 0, an interval.
    """

    name: str
    points: Sequence[tuple[float, float, str]] = ()
    line: Points = ()
    dashed: bool = False
    whisker: tuple[float, float, float] | None = None


def scatter(
    title: str, x_name: str, series: Sequence[Series], *, percent: bool = False, note: str = ""
) -> str:
    """Draws series over logarithmic axes.

    Args:
        title: above it.
        x_name: below its axis.
        series: at most as many colours as the style has; later ones take the first again.
        percent: y are shares, written in percent.
        note: behind the legend.

    Returns:
        A `<figure>`; empty text where there is no point.
    """
    xs = [x for s in series for x, _ in _all_of(s)]
    ys = [y for s in series for _, y in _all_of(s)]
    if not xs:
        return ""
    x_range, y_range = _widened(xs, 1.15), _widened(ys, 1.05)

    def x(value: float) -> float:
        return _LEFT + _share(value, x_range) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - _share(value, y_range) * (_HEIGHT - _TOP - _BOTTOM)

    base = _HEIGHT - _BOTTOM
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html_text(title)}">']
    for tick in _ticks(y_range):
        label = f"{format_number(100 * tick)}%" if percent else format_number(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text class="tick" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{label}</text>'
        )
    for tick in _ticks(x_range):
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{base}"/>'
            f'<text class="tick" x="{x(tick):.1f}" y="{base + 16}" text-anchor="middle">'
            f"{_short(tick)}</text>"
        )
    parts.append(
        f'<text class="tick" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}" '
        f'text-anchor="middle">{html_text(x_name)}</text>'
    )
    legend = []
    for number, each in enumerate(series):
        colour = f"s{number % NUM_COLOURS}"
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in each.line)
        if path:
            dash = ' stroke-dasharray="4 5"' if each.dashed else ""
            parts.append(f'<polyline class="line {colour}"{dash} points="{path}"/>')
        if each.whisker:
            at, low, high = each.whisker
            parts.append(
                f'<line class="whisker" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y(low):.1f}" '
                f'y2="{y(high):.1f}"/>'
            )
        parts += [
            f'<circle class="{colour}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="4">'
            f"<title>{html_text(name)}</title></circle>"
            for a, b, name in each.points
        ]
        legend.append(f'<span class="key {colour}"><i></i>{html_text(each.name)}</span>')
    if note:
        legend.append(f"<span>{html_text(note)}</span>")
    return (
        f'<figure class="chart"><figcaption><h3>{html_text(title)}</h3>'
        f'<p class="legend">{"".join(legend)}</p></figcaption>{"".join(parts)}</svg></figure>'
    )


def _all_of(series: Series) -> list[tuple[float, float]]:
    found = [(x, y) for x, y, _ in series.points] + list(series.line)
    if series.whisker:
        at, low, high = series.whisker
        found += [(at, low), (at, high)]
    return found


def _widened(values: Sequence[float], factor: float) -> tuple[float, float]:
    return min(values) / factor, max(values) * factor


def _share(value: float, span: tuple[float, float]) -> float:
    return (math.log(value) - math.log(span[0])) / (math.log(span[1]) - math.log(span[0]))


def _ticks(span: tuple[float, float]) -> list[float]:
    """Round values inside; of a wide axis whole powers of ten, not all of them."""
    first, last = math.floor(math.log10(span[0])), math.ceil(math.log10(span[1]))
    for marks in (_MANY_MARKS, *_MARKS):
        found = [
            mark * 10.0**decade
            for decade in range(first, last + 1)
            for mark in marks
            if span[0] <= mark * 10.0**decade <= span[1]
        ]
        if len(found) <= _MOST_TICKS:
            return found
    return found[:: -(-len(found) // _MOST_TICKS)]


def _short(value: float) -> str:
    """10000000 as 1e7, which fits below an axis."""
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
