"""Line charts as inline SVG, coloured by the page's style sheet."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clipjax.printable import html_text

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 400, 210
_TOP, _BOTTOM = 10, 28
_GAP = 8  # between a label and its axis
_CHARACTER = 6.6  # width of a digit of a label, 11 pixels high
_MAX_POINTS = 400  # of a line; more are not seen and make the file large
NUM_COLOURS = 6  # classes s0 to s5 of the style sheet
_NEAR = 3.0  # pixels between two lines that hide one another
_DASH = 12.0  # pixels of such a line at a time, then the other's turn


class _Frame(NamedTuple):
    """Where values of a chart lie: the ranges of both axes, and the margins that labels need."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float
    right: float

    def x(self, value: float) -> float:
        return _place(value, self.x_range, self.left, _WIDTH - self.right)

    def y(self, value: float) -> float:
        return _place(value, self.y_range, _HEIGHT - _BOTTOM, _TOP)


def format_number(value: float) -> str:
    """Writes a number for people: three significant digits, thousands apart."""
    if not math.isfinite(value) or (value and not 1e-3 <= abs(value) < 1e7):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    if float(value).is_integer() or abs(value) >= 1e3:
        return f"{round(value):,}"
    return f"{value:.3g}"


def smooth(points: Points, reach: int) -> list[tuple[float, float]]:
    """Averages each value with up to `reach` neighbours on either side, equally many on both.

    Symmetric, so that the average neither lags behind a curve nor bends its ends.
    """
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result = []
    for i, (x, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)
        result.append((x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)))
    return result


def chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    percent: bool = False,
    last_step: float = 0.0,
    over: str = "step",
) -> str:
    """Draws lines over training steps, or over another number.

    Args:
        lines: name -> (step, value) in order; values that are not finite are left out.
        percent: values are shares, shown in percent on an axis that starts at 0.
        last_step: where the axis of steps ends, if the lines do not reach further.
        over: what the axis is of; only steps are whole numbers.

    Returns:
        A `<figure>`; empty text if there is no point.
    """
    finite = {
        name: kept
        for name, points in lines.items()
        if (kept := [(x, y) for x, y in points if math.isfinite(y)])
    }
    if not finite:
        return ""
    scale = 100.0 if percent else 1.0
    finite = {name: [(x, y * scale) for x, y in points] for name, points in finite.items()}
    last = max(last_step, 1.0, *(points[-1][0] for points in finite.values()))
    ys = [y for points in finite.values() for _, y in points]
    x_ticks = _ticks(0.0, last, 5, whole=over == "step")
    y_ticks = _ticks(min(0.0, *ys) if percent else min(ys), max(ys), 4)
    unit = "%" if percent else ""
    x_labels = _tick_labels(x_ticks)
    y_labels = [f"{label}{unit}" for label in _tick_labels(y_ticks)]
    frame = _Frame(
        x_range=(0.0, last),
        y_range=(min(y_ticks[0], *ys), max(y_ticks[-1], *ys)),
        left=_CHARACTER * max(len(over), *map(len, y_labels)) + _GAP + 2,
        right=max(10.0, _CHARACTER * len(x_labels[-1]) / 2 + 2),
    )
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html_text(title)}">',
        *_axes(over, dict(zip(x_ticks, x_labels, strict=True)), y_ticks, y_labels, frame),
    ]
    legend = []
    turns = _turns(list(finite.values()), frame)
    for number, (name, points) in enumerate(finite.items()):
        colour = f"s{number % NUM_COLOURS}"
        parts += _line(name, points, colour, frame, turns[number])
        newest = format_number(points[-1][1]) + (" %" if percent else "")
        legend.append(f'<span class="key {colour}"><i></i>{html_text(name)} <b>{newest}</b></span>')
    parts.append("</svg>")
    return (
        f'<figure class="chart"><figcaption><h3>{html_text(title)}</h3>'
        f'<p class="legend">{"".join(legend)}</p></figcaption>{"".join(parts)}</figure>'
    )


def _ticks(low: float, high: float, target: int, *, whole: bool = False) -> list[float]:
    """Round values that cover [low, high] in about `target` intervals, on request whole ones."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    rough = (high - low) / target
    if whole:
        rough = max(rough, 1.0)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    steps = [m * magnitude for m in (1, 2, 2.5, 5, 10)]
    step = next(
        s for s in steps if s >= rough * 0.999 and not (whole and not float(s).is_integer())
    )
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _tick_labels(ticks: list[float]) -> list[str]:
    """Writes all ticks of an axis with the same number of digits."""
    step = ticks[1] - ticks[0]
    if step < 1e-4 and max(map(abs, ticks)) < 1e-2:  # elsewhere all labels would be one
        return [f"{tick:.1e}".replace("e-0", "e-") if tick else "0" for tick in ticks]
    digits = next(d for d in range(13) if abs(round(step, d) - step) < 1e-6 * step)
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _turns(lines: Sequence[Points], frame: _Frame) -> list[tuple[int, int]]:
    """Which lines would hide one another: (place, number) of each among those that lie on it.

    Lines that lie on one another over most of their length are drawn in turns, a dash each.
    """

    def places(points: Points) -> dict[float, float]:
        return {x: frame.y(y) for x, y in points}

    def hide(a: dict[float, float], b: dict[float, float]) -> bool:
        shared = a.keys() & b.keys()
        near = sum(abs(a[x] - b[x]) < _NEAR for x in shared)
        return near > len(shared) / 2

    drawn = [places(points) for points in lines]
    groups: list[list[int]] = []
    for number, line in enumerate(drawn):
        for group in groups:
            if any(hide(line, drawn[other]) for other in group):
                group.append(number)
                break
        else:
            groups.append([number])
    found = {n: (place, len(group)) for group in groups for place, n in enumerate(group)}
    return [found[number] for number in range(len(lines))]


def _place(value: float, span: tuple[float, float], start: float, stop: float) -> float:
    return start + (value - span[0]) / ((span[1] - span[0]) or 1.0) * (stop - start)


def _axes(
    over: str,
    x_ticks: Mapping[float, str],
    y_ticks: list[float],
    y_labels: list[str],
    frame: _Frame,
) -> list[str]:
    parts = []
    edge = f"{frame.left - _GAP:.1f}"
    for tick, label in zip(y_ticks, y_labels, strict=True):
        y = frame.y(tick)
        parts.append(
            f'<line class="grid" x1="{frame.left:.1f}" x2="{_WIDTH - frame.right:.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{edge}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    parts.append(
        f'<text class="tick" x="{edge}" y="{_HEIGHT - 10}" text-anchor="end">{over}</text>'
    )
    for tick, label in x_ticks.items():
        if 0 < tick <= frame.x_range[1]:  # at 0 stands what the axis is of
            parts.append(
                f'<text class="tick" x="{frame.x(tick):.1f}" y="{_HEIGHT - 10}" '
                f'text-anchor="middle">{label}</text>'
            )
    return parts


def _line(
    name: str, points: Points, colour: str, frame: _Frame, turn: tuple[int, int]
) -> list[str]:
    """A line; a long one is drawn faint, with its running average on top.

    `turn` is its place among the lines that lie on one another, and how many these are.
    """
    place, number = turn
    label = f"<title>{html_text(name)}</title>"

    def path(values: Points) -> str:
        stride = -(-len(values) // _MAX_POINTS)
        # Counted from the end, so that the last point, the one that people look for, stays.
        kept = values[::-1][::stride][::-1]
        return " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in kept)

    if len(points) == 1:
        x, y = frame.x(points[0][0]), frame.y(points[0][1])
        radius = 4 + 4 * (number - 1 - place)  # the first drawn is the largest: rings
        return [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{label}</circle>']
    dashes = ""
    if number > 1:
        dashes = (
            f' stroke-dasharray="{_DASH:g} {_DASH * (number - 1):g}"'
            f' stroke-dashoffset="{-_DASH * place:g}" style="stroke-linecap:butt"'
        )
    if len(points) < 60:
        return [
            f'<polyline class="line {colour}"{dashes} points="{path(points)}">{label}</polyline>'
        ]
    average = smooth(points, len(points) // 40)
    return [
        f'<polyline class="line faint {colour}" points="{path(points)}"/>',
        f'<polyline class="line {colour}"{dashes} points="{path(average)}">{label}</polyline>',
    ]
