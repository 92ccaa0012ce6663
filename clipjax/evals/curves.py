"""Line charts as inline SVG, coloured by the page's style sheet."""

import html
import math
from collections.abc import Mapping, Sequence

__all__ = ["chart", "format_number", "smooth"]

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 28
_MAX_POINTS = 400  # of a line; more are not seen and make the file large
_NUM_COLOURS = 6  # classes s0 to s5 of the style sheet


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
    title: str, lines: Mapping[str, Points], *, percent: bool = False, last_step: float = 0.0
) -> str:
    """Draws lines over training steps.

    Args:
        title: above the chart.
        lines: name -> (step, value) in order; values that are not finite are left out.
        percent: values are shares, shown in percent on an axis that starts at 0.
        last_step: where the axis of steps ends, if the lines do not reach further.

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
    x_ticks, x_range = _ticks(0.0, last, 5), (0.0, last)
    y_ticks = _ticks(min(0.0, *ys) if percent else min(ys), max(ys), 4)
    y_range = (min(y_ticks[0], *ys), max(y_ticks[-1], *ys))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        *_axes(x_ticks, y_ticks, x_range, y_range, "%" if percent else ""),
    ]
    legend = []
    for number, (name, points) in enumerate(finite.items()):
        colour = f"s{number % _NUM_COLOURS}"
        parts += _line(name, points, colour, x_range, y_range)
        last = format_number(points[-1][1]) + (" %" if percent else "")
        legend.append(f'<span class="key {colour}"><i></i>{html.escape(name)} <b>{last}</b></span>')
    parts.append("</svg>")
    return (
        f'<figure class="chart"><figcaption><h3>{html.escape(title)}</h3>'
        f'<p class="legend">{"".join(legend)}</p></figcaption>{"".join(parts)}</figure>'
    )


def _ticks(low: float, high: float, target: int) -> list[float]:
    """Round values that cover [low, high] in about `target` intervals."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    rough = (high - low) / target
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _tick_labels(ticks: list[float]) -> list[str]:
    """Writes all ticks of an axis with the same number of digits."""
    step = ticks[1] - ticks[0]
    if step < 1e-4:
        return [f"{tick:.1e}".replace("e-0", "e-") if tick else "0" for tick in ticks]
    digits = next(d for d in range(6) if abs(round(step, d) - step) < 1e-9)
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _place(value: float, span: tuple[float, float], start: float, stop: float) -> float:
    return start + (value - span[0]) / ((span[1] - span[0]) or 1.0) * (stop - start)


def _x(value: float, span: tuple[float, float]) -> float:
    return _place(value, span, _LEFT, _WIDTH - _RIGHT)


def _y(value: float, span: tuple[float, float]) -> float:
    return _place(value, span, _HEIGHT - _BOTTOM, _TOP)


def _axes(
    x_ticks: list[float],
    y_ticks: list[float],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    unit: str,
) -> list[str]:
    parts = []
    y_labels, x_labels = _tick_labels(y_ticks), _tick_labels(x_ticks)
    for tick, label in zip(y_ticks, y_labels, strict=True):
        y = _y(tick, y_range)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{label}{unit}</text>"
        )
    parts.append(
        f'<text class="tick" x="{_LEFT - 8}" y="{_HEIGHT - 10}" text-anchor="end">step</text>'
    )
    for tick, label in zip(x_ticks, x_labels, strict=True):
        if 0 < tick <= x_range[1]:  # the word step stands at 0
            parts.append(
                f'<text class="tick" x="{_x(tick, x_range):.1f}" y="{_HEIGHT - 10}" '
                f'text-anchor="middle">{label}</text>'
            )
    return parts


def _line(
    name: str,
    points: Points,
    colour: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> list[str]:
    """A line; a long one is drawn faint, with its running average on top."""

    def path(values: Points) -> str:
        stride = -(-len(values) // _MAX_POINTS)
        # Counted from the end, so that the last point, the one that people look for, stays.
        kept = values[::-1][::stride][::-1]
        return " ".join(f"{_x(x, x_range):.1f},{_y(y, y_range):.1f}" for x, y in kept)

    if len(points) == 1:
        x, y = _x(points[0][0], x_range), _y(points[0][1], y_range)
        return [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>']
    label = f"<title>{html.escape(name)}</title>"
    if len(points) < 60:
        return [f'<polyline class="line {colour}" points="{path(points)}">{label}</polyline>']
    average = smooth(points, len(points) // 40)
    return [
        f'<polyline class="line faint {colour}" points="{path(points)}"/>',
        f'<polyline class="line {colour}" points="{path(average)}">{label}</polyline>',
    ]
