"""The parts of a page that show pictures of what an evaluation confused, and found."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from clipjax.data.inspect.contact_sheet import jpeg_of, thumbnails
from clipjax.data.source import DataSource
from clipjax.evals.running import EvalResult
from clipjax.printable import html_words
from clipjax.report.page import percent


class Shown(NamedTuple):
    """A picture on a card.

    Attributes:
        row: of the source.
        words: below it, of HTML.
        is_framed: whether it is told from the others.
    """

    row: int
    words: str
    is_framed: bool = False


def picture_tags(source: DataSource, rows: Sequence[int]) -> Iterator[str]:
    """Gives thumbnails of rows as tags of HTML; of what is unusable its key and what is wrong."""
    for image, captions, key in thumbnails(source, rows):
        if image is None:
            yield f"<p>{html_words(captions[0])}</p>"
            continue
        data = base64.b64encode(jpeg_of(image)).decode("ascii")
        words = html_words("; ".join([key, *captions]))
        yield (
            f'<img src="data:image/jpeg;base64,{data}" alt="{words}" title="{words}" '
            'loading="lazy">'
        )


def examples_section(result: EvalResult, open_source: Callable[[str], DataSource]) -> str:
    """Shows the rows that a result has in its tables; nothing of one that has none.

    Args:
        open_source: gives the source of a SPEC, as `EvalName.spec` writes it.
    """
    tables = result.about.get("tables") or {}
    if not (tables.get("confused") or tables.get("queries")):
        return ""
    try:
        source = open_source(result.name.spec)
    except (ValueError, OSError) as error:
        logging.warning("no pictures of %s are shown: %s", result.name.prefix, error)
        return ""
    return _confused(tables, source) if "confused" in tables else _queries(tables, source)


def _confused(tables: Mapping[str, Any], source: DataSource) -> str:
    names = [each["name"] for each in tables["per_class"]]
    is_share = "reliability" in tables  # else the scores are cosines
    cards = []
    for pair in tables["confused"]:
        answer = names[pair["answer"]]
        told = f"{names[pair['class']]} called {answer}: {pair['pictures']:,} of {pair['of']:,}"
        pictures = []
        for each in pair["examples"]:
            score = each["score"]
            sure = (
                percent(score).replace(" ", "\N{NO-BREAK SPACE}")
                if is_share
                else f"cosine {score:.2f}"
            )
            pictures.append(Shown(each["row"], html_words(f"{answer}, {sure}")))
        cards.append(picture_card(source, html_words(told), told, pictures))
    return _cards(
        "Pictures of the most confused",
        "Of each pair of classes the pictures with the surest wrong answers; below them the answer "
        f"and its {'confidence' if is_share else 'cosine'}.",
        cards,
    )


def _queries(tables: Mapping[str, Any], source: DataSource) -> str:
    cards = []
    for query in tables["queries"]:
        own, rank = query["row"], f"✓ rank {query['rank']:,}"
        pictures = []
        for each in query["found"]:
            is_own, cosine = each["row"] == own, f"cosine {each['score']:.2f}"
            pictures.append(Shown(each["row"], f"{rank}, {cosine}" if is_own else cosine, is_own))
        if not any(each.is_framed for each in pictures):
            pictures.append(Shown(own, rank, is_framed=True))
        verdict, mark = ("right", "✓") if query["rank"] == 1 else ("wrong", "✗")
        caption = query["caption"]
        title = f'<em aria-label="{verdict}">{mark}</em> {html_words(caption)}'
        cards.append(picture_card(source, title, caption, pictures, kind=f" find {verdict}"))
    return _cards(
        "Pictures found for captions",
        "Captions that find their own picture first, then those that find it last; each with the "
        "best pictures, best first. The caption's own picture is framed, with a ✓ and its rank, "
        "and stands at the end where it is not among them.",
        cards,
    )


def _cards(title: str, lede: str, cards: Sequence[str]) -> str:
    return (
        f'<h3 class="shown">{title}</h3><p class="lede">{html_words(lede)}</p>'
        f'<div class="groups pairs">{"".join(cards)}</div>'
    )


def picture_card(
    source: DataSource, title: str, label: str, pictures: Sequence[Shown], *, kind: str = ""
) -> str:
    """Gives pictures under a title, which is of HTML; the label is text, of the whole."""
    tags = picture_tags(source, [each.row for each in pictures])
    shown = "".join(
        f"<figure{' class=own' if each.is_framed else ''}>{tag}"
        f"<figcaption>{each.words}</figcaption></figure>"
        for tag, each in zip(tags, pictures, strict=True)
    )
    return (
        f'<section class="card group{kind}" tabindex="0" aria-label="{html_words(label)}">'
        f'<h3>{title}</h3><div class="row wide">{shown}</div></section>'
    )
