"""The parts of a page that show pictures of what an evaluation confused, and found."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from clipjax.data.inspect.contact_sheet import thumbnails
from clipjax.data.source import DataSource
from clipjax.evals.running import EvalResult
from clipjax.printable import html_words
from clipjax.report.page import percent


def picture_tags(source: DataSource, rows: Sequence[int]) -> Iterator[str]:
    """Gives thumbnails of rows as tags of HTML; of what is unusable its key and what is wrong."""
    for image, captions, key in thumbnails(source, rows):
        if image is None:
            yield f"<p>{html_words(captions[0])}</p>"
            continue
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        data = base64.b64encode(file.getvalue()).decode("ascii")
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
            pictures.append((each["row"], html_words(f"{answer}, {sure}")))
        cards.append(_card(html_words(told), told, source, pictures))
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
        pictures = [
            (each["row"], f"{f'{rank}, ' if each['row'] == own else ''}cosine {each['score']:.2f}")
            for each in query["found"]
        ]
        if all(row != own for row, _ in pictures):
            pictures.append((own, rank))
        verdict, mark = ("right", "✓") if query["rank"] == 1 else ("wrong", "✗")
        caption = query["caption"]
        title = f'<em aria-label="{verdict}">{mark}</em> {html_words(caption)}'
        kind = f" find {verdict}"
        cards.append(_card(title, caption, source, pictures, own=own, kind=kind))
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


def _card(
    title: str,
    label: str,
    source: DataSource,
    pictures: Sequence[tuple[int, str]],
    *,
    own: int | None = None,
    kind: str = "",
) -> str:
    """Pictures under a title, of HTML: (row, words, of HTML).

    Args:
        label: text, of the whole.
        own: the row that is framed.
    """
    tags = picture_tags(source, [row for row, _ in pictures])
    shown = "".join(
        f"<figure{' class=own' if row == own else ''}>{tag}"
        f"<figcaption>{words}</figcaption></figure>"
        for tag, (row, words) in zip(tags, pictures, strict=True)
    )
    return (
        f'<section class="card group{kind}" tabindex="0" aria-label="{html_words(label)}">'
        f'<h3>{title}</h3><div class="row wide">{shown}</div></section>'
    )
