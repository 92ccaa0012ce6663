"""The parts of the report that show pictures: names of pictures, and pictures of captions."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clipjax.evals.retrieval_answers import Found, Picture
from clipjax.evals.zero_shot import Prediction
from clipjax.printable import html_text as escape
from clipjax.printable import html_words
from clipjax.report.page import Names, dataset_title


def answers(prefix: str, predictions: Sequence[Prediction], names: Names) -> str:
    """A grid of pictures with the names that the model gives them."""
    if not predictions:
        return ""
    right = sum(prediction.correct for prediction in predictions)
    cards = "".join(_answer(prediction) for prediction in predictions)
    return (
        f"<h2>Answers on {escape(dataset_title(prefix, names))}</h2>"
        f'<p class="lede">{len(predictions)} evenly spaced pictures as the model sees them'
        f"{_size([p.image for p in predictions])}: the right name in bold, below it the model's "
        f"three best guesses with their scores. {right} of {len(predictions)} first guesses are "
        "right.</p>"
        f'<div class="answers">{cards}</div>'
    )


def _answer(prediction: Prediction) -> str:
    rows = []
    for rank, (name, score) in enumerate(zip(prediction.names, prediction.scores, strict=True)):
        # Two classes may share a name, so the verdict on the first is not the name's.
        hit = prediction.correct if rank == 0 else name == prediction.label
        kind = "hit" if hit else "miss" if rank == 0 else ""
        share = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        rows.append(
            f'<li class="{kind}" style="--share:{100 * share:.1f}%">'
            f'<span title="{html_words(name)}">{html_words(name)}</span>'
            f'<data value="{score:.6g}">{_score(score)}</data></li>'
        )
    verdict, mark = ("right", "✓") if prediction.correct else ("wrong", "✗")
    return (
        f'<article class="answer card {verdict}">'
        f'<img src="{_png(prediction.image)}" alt="{html_words(prediction.label)}" '
        f'title="{escape(prediction.key)}" loading="lazy">'
        f'<div><h3><em aria-label="{verdict}">{mark}</em> {html_words(prediction.label)}</h3>'
        f"<ol>{''.join(rows)}</ol></div></article>"
    )


def _score(score: float) -> str:
    return f"{100 * score:.0f} %" if score >= 0.0095 else "&lt; 1 %" if score >= 0 else "&lt; 0"


def finds(prefix: str, found: Sequence[Found], names: Names) -> str:
    """Captions with the pictures that the model finds for them."""
    if not found:
        return ""
    right = sum(answer.rank == 1 for answer in found)
    return (
        f"<h2>Found in {escape(dataset_title(prefix, names))}</h2>"
        f'<p class="lede">{len(found)} captions, each with the best of {found[0].num_searched:,} '
        f"evenly spaced pictures, best first, with their cosines; the caption's own picture is "
        "framed, and stands at the end where it is not among them. "
        f"{right} of {len(found)} captions find their own first.</p>"
        f'<div class="answers">{"".join(map(_find, found))}</div>'
    )


def _find(answer: Found) -> str:
    verdict, mark = ("right", "✓") if answer.rank == 1 else ("wrong", "✗")
    shown = [_found_picture(picture, f"{picture.score:.2f}") for picture in answer.pictures]
    if not any(picture.is_right for picture in answer.pictures):
        shown.append(_found_picture(answer.right, f"rank {answer.rank:,}"))
    return (
        f'<article class="find card {verdict}">'
        f'<h3><em aria-label="{verdict}">{mark}</em> {html_words(answer.caption)}</h3>'
        f'<div class="row">{"".join(shown)}</div></article>'
    )


def _found_picture(picture: Picture, words: str) -> str:
    kind = ' class="own"' if picture.is_right else ""
    name = escape(picture.key)
    return (
        f'<figure{kind}><img src="{_png(picture.image)}" alt="{name}" title="{name}" '
        f'loading="lazy"><figcaption>{words}</figcaption></figure>'
    )


def _size(images: Sequence[np.ndarray]) -> str:
    """Their size in words, where it is one."""
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        return ""
    ((height, width),) = sizes
    return f", {width} &times; {height} pixels"


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
