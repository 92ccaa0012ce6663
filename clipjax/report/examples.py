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
    if not tables.get("confused"):
        return ""
    try:
        source = open_source(result.name.spec)
    except (ValueError, OSError) as error:
        logging.warning("no pictures of %s are shown: %s", result.name.prefix, error)
        return ""
    return _confused(tables, source)


def _confused(tables: Mapping[str, Any], source: DataSource) -> str:
    names = [each["name"] for each in tables["per_class"]]
    is_share = "reliability" in tables  # else the scores are cosines
    cards = []
    for pair in tables["confused"]:
        name, answer = html_words(names[pair["class"]]), html_words(names[pair["answer"]])
        told = f"{name} called {answer}: {pair['pictures']:,} of {pair['of']:,}"
        rows = [each["row"] for each in pair["examples"]]
        scores = [each["score"] for each in pair["examples"]]
        words = [f"{answer}, {percent(s) if is_share else f'cosine {s:.2f}'}" for s in scores]
        cards.append(_card(told, source, rows, words))
    return (
        '<h3>Pictures of the most confused</h3><p class="lede">Of each pair of classes the '
        "pictures with the surest wrong answers; below them the answer and its "
        f"{'confidence' if is_share else 'cosine'}.</p>"
        f'<div class="groups">{"".join(cards)}</div>'
    )


def _card(title: str, source: DataSource, rows: Sequence[int], words: Sequence[str]) -> str:
    """A title and words, both HTML, around pictures."""
    shown = "".join(
        f"<figure>{picture}<figcaption>{told}</figcaption></figure>"
        for picture, told in zip(picture_tags(source, rows), words, strict=True)
    )
    return (
        f'<section class="card group" tabindex="0" aria-label="{title}"><h3>{title}</h3>'
        f'<div class="row wide">{shown}</div></section>'
    )
