"""Pictures of what an evaluation found, as inline SVG, coloured by the page's style sheet."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.printable import html_words

_WIDTH = 400
_ROW, _AXIS = 18, 22  # heights of a bar's row, and of the axis below
_CHARACTER = 6.8  # width of a letter, 11 pixels high
_LETTERS = 24  # of a label; longer ones are cut
_MAX_CLASSES = 50  # of a matrix; of more nobody sees a cell
_NAMED_CLASSES = 24  # of a matrix whose rows have their names beside them


class Bar(NamedTuple):
    """A share with its name.

    Attributes:
        spread: half the length of the line across its end, as a standard deviation; 0 is none.
        note: behind the number: of how many it is.
    """

    label: str
    value: float
    spread: float = 0.0
    note: str = ""


def figure(title: str, body: str, legend: str = "") -> str:
    """Puts a caption above a picture; nothing where there is none. Both are text."""
    if not body:
        return ""
    return (
        f'<figure class="chart"><figcaption><h3>{html_words(title)}</h3>'
        f'<p class="legend">{html_words(legend)}</p></figcaption>{body}</figure>'
    )


def bars(title: str, rows: Sequence[Bar], *, legend: str = "", letters: int = _LETTERS) -> str:
    """Draws shares as horizontal bars, with their numbers; what is not finite is left out.

    Args:
        letters: of a label that are shown.
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return ""
    labels = [_short(row.label, letters) for row in rows]
    numbers = [_percent(row) for row in rows]
    left = _CHARACTER * max(map(len, labels)) + 8
    right = _WIDTH - _CHARACTER * max(map(len, numbers)) - 8
    height = _ROW * len(rows) + _AXIS

    def x(share: float) -> float:
        return left + min(max(share, 0.0), 1.0) * (right - left)

    parts = [_open(title, height)]
    for tick in (0.0, 0.5, 1.0):
        parts.append(_line("grid", x(tick), x(tick), 0, height - _AXIS))
        parts.append(_text("tick", x(tick), height - 6, "middle", f"{100 * tick:.0f}%"))
    for number, (row, label, told) in enumerate(zip(rows, labels, numbers, strict=True)):
        top = number * _ROW
        parts += [
            _text("label", left - 6, top + 13, "end", label),
            f'<rect class="bar s0" x="{left:.1f}" y="{top + 3}" '
            f'width="{x(row.value) - left:.1f}" height="{_ROW - 6}">'
            f"<title>{html_words(row.label)}</title></rect>",
            _text("tick", right + 6, top + 13, "start", told),
        ]
        if row.spread:
            low, high = x(row.value - row.spread), x(row.value + row.spread)
            parts.append(_line("whisker", low, high, top + _ROW / 2, top + _ROW / 2))
    return figure(title, "".join([*parts, "</svg>"]), legend)


def reliability(curve: Sequence[Mapping[str, float]], ece: float | None) -> str:
    """Draws accuracy over confidence by bin, beside the line on which both are equal.

    Args:
        curve: the table of that name: `from`, `to`, `examples`, `confidence`, `accuracy`.
    """
    total = sum(each["examples"] for each in curve)
    if not total:
        return ""
    title, size, left, top = "Accuracy by confidence", 230, 52, 6

    def x(share: float) -> float:
        return left + share * (_WIDTH - left - 20)

    def y(share: float) -> float:
        return top + (1 - share) * (size - top)

    parts = [_open(title, size + _AXIS)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        label = f"{100 * tick:.0f}%"
        parts.append(_line("grid", x(0), x(1), y(tick), y(tick)))
        parts.append(_text("tick", left - 6, y(tick) + 4, "end", label))
        parts.append(_text("tick", x(tick), size + 16, "middle", label))
    for each in curve:
        told = (
            f"{each['examples']:,} pictures, confidence {100 * each['confidence']:.1f} %, "
            f"accuracy {100 * each['accuracy']:.1f} %"
        )
        parts.append(
            f'<rect class="bar s0" x="{x(each["from"]):.1f}" y="{y(each["accuracy"]):.1f}" '
            f'width="{x(each["to"]) - x(each["from"]) - 1:.1f}" '
            f'height="{y(0) - y(each["accuracy"]):.1f}"><title>{told}</title></rect>'
        )
        radius = 2 + 5 * math.sqrt(each["examples"] / total)  # its area says how many
        at = f'cx="{x(each["confidence"]):.1f}" cy="{y(each["accuracy"]):.1f}"'
        parts.append(f'<circle class="s1" {at} r="{radius:.1f}"/>')
    parts.append(_line("whisker", x(0), x(1), y(0), y(1)))
    legend = f"of {total:,} pictures" + ("" if ece is None else f"; ECE {100 * ece:.1f} %")
    return figure(title, "".join([*parts, "</svg>"]), legend)


def confusion(matrix: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> str:
    """Draws how often each class (a row) is answered by each name (a column).

    Args:
        matrix: the table of that name: place of the class -> place of the answer -> pictures.
        names: of the classes; of more than 50 there is no picture.
    """
    if not matrix or len(names) > _MAX_CLASSES:
        return ""
    labels = [_short(name) for name in names] if len(names) <= _NAMED_CLASSES else []
    left = _CHARACTER * max(map(len, labels)) + 8 if labels else 4
    cell = (_WIDTH - left - 4) / len(names)
    parts = [_open("Confusion", cell * len(names) + 4)]
    for place, label in enumerate(labels):
        parts.append(_text("label", left - 6, (place + 0.5) * cell + 4, "end", label))
    edge = left + cell * len(names)
    parts.append(
        f'<rect class="frame" x="{left:.1f}" y="0" width="{edge - left:.1f}" '
        f'height="{edge - left:.1f}"/>'
    )
    for row, answers in matrix.items():
        total = sum(answers.values())
        for column, count in answers.items():
            share, right = count / total, row == column
            told = f"{names[int(row)]} is called {names[int(column)]}: {count:,} of {total:,}"
            parts.append(
                f'<rect class="bar {"s2" if right else "s1"}" fill-opacity="{share:.2g}" '
                f'x="{left + int(column) * cell:.1f}" y="{int(row) * cell:.1f}" '
                f'width="{cell:.1f}" height="{cell:.1f}"><title>{html_words(told)}</title></rect>'
            )
    legend = "a row a class, a column an answer; the darker, the larger its share of the row"
    return figure("Confusion", "".join([*parts, "</svg>"]), legend)


def svg_file(drawn: str, style: str) -> str:
    """Makes a file of the picture in a figure.

    Args:
        drawn: what the functions above give.
        style: CSS of the classes that it uses.
    """
    begin, end = drawn.index("<svg "), drawn.index("</svg>")
    named = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" '
    body = drawn[begin:end].replace("<svg ", named, 1)
    head, rest = body.split(">", 1)
    return f"{head}><style>{style}</style>{rest}</svg>\n"


def share_bars(title: str, values: Mapping[str, Any], **how: Any) -> str:
    """Draws shares by their names."""
    return bars(title, [Bar(label, float(value)) for label, value in values.items()], **how)


def _open(title: str, height: float) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{html_words(title)}">'


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {at}>{html_words(text)}</text>'


def _short(text: str, letters: int = _LETTERS) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _percent(row: Bar) -> str:
    spread = f" ± {100 * row.spread:.1f}" if row.spread else ""
    return f"{100 * row.value:.1f} %{spread}{row.note and f', {row.note}'}"
