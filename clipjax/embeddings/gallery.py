"""Pages of pictures: what a search finds, duplicates, and clusters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import clipjax
from clipjax.data.source import DataSource
from clipjax.printable import html_text, html_words
from clipjax.report.examples import Shown, picture_card
from clipjax.report.page import page


class Group(NamedTuple):
    """Pictures that stand together.

    Attributes:
        title: text.
        rows: of the pictures in the source.
        words: below each of them.
        best: how many from the first on are framed.
    """

    title: str
    rows: Sequence[int]
    words: Sequence[str]
    best: int = 0


def gallery(
    source: DataSource,
    groups: Iterable[Group],
    *,
    title: str,
    subtitle: str,
    lede: str,
    figure: str = "",
) -> bytes:
    """Gives a page of groups of pictures: one file, which loads nothing from elsewhere.

    Args:
        figure: HTML before them.
    """
    cards = "".join(_card(source, group) for group in groups)
    return page(
        title=title,
        subtitle=subtitle,
        sections=[
            f'<p class="lede">{html_text(lede)}</p>',
            figure,
            f'<div class="groups">{cards}</div>',
        ],
        footer=f"Written by clipjax {clipjax.__version__}.",
    ).encode("utf-8")


def _card(source: DataSource, group: Group) -> str:
    pictures = [
        Shown(row, html_words(words), number < group.best)
        for number, (row, words) in enumerate(zip(group.rows, group.words, strict=True))
    ]
    return picture_card(source, html_words(group.title), group.title, pictures)


def histogram_figure(histogram: Sequence[Mapping[str, float]], mark: float) -> str:
    """Gives a table of how many `pairs` are `from` a cosine `to` another; bold from a mark on."""
    most = max(1, *(one["pairs"] for one in histogram))
    rows = "".join(
        f"<tr><th>{bin_words(one)}</th>"
        f'<td class="number">{_strong(one["pairs"], one["from"] >= mark)}</td>'
        f'<td class="meter"><meter max="1" value="{one["pairs"] / most:.4f}"></meter></td></tr>'
        for one in histogram
    )
    return (
        '<div class="card scroll" tabindex="0" role="region" aria-label="cosines of pairs">'
        f"<table><tbody>{rows}</tbody></table></div>"
    )


def bin_words(one: Mapping[str, float]) -> str:
    """`0.9500 to 0.9625`: the edges of a bin, with as many digits as tell them apart."""
    width = one["to"] - one["from"]
    digits = max(4, 1 - math.floor(math.log10(width))) if width > 0 else 4
    return f"{one['from']:.{digits}f} to {one['to']:.{digits}f}"


def _strong(count: float, is_marked: bool) -> str:
    return f"<b>{count:,}</b>" if is_marked else f"{count:,}"


def one_line(record: dict[str, Any], words: str) -> str:
    """A picture of an index in a line: a number, its key, its first caption."""
    captions = record["captions"]
    return f"{words}  {record['key']}{f'  {captions[0]}' if captions else ''}"
