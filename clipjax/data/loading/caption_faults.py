"""Captions that teach or measure little, and how that is told: words, repetitions, lines."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from clipjax.data.captions import has_lines

NOTABLE = 0.1  # of captions; web data repeats a few in a hundred
_LETTER = re.compile(r"[^\W\d_]")
_CODE = re.compile(r"n\d{8}")  # of WordNet

LINES, WORDLESS = "lines", "wordless"


def has_words(text: Any) -> bool:
    """Whether a text, or one of several or of a map of them, says more than a number or a code."""
    if isinstance(text, Mapping):
        return any(map(has_words, text.values()))
    if not isinstance(text, str):
        return any(map(has_words, text))
    return _LETTER.search(text) is not None and not _CODE.fullmatch(text.strip())


def faults_of(text: Any) -> list[str]:
    """Names what is noted of an example's captions: LINES that are more than one, WORDLESS."""
    try:
        found = (LINES, has_lines(text)), (WORDLESS, not has_words(text))
    except TypeError:  # bytes, which a source of one's own may give
        return []
    return [name for name, is_so in found if is_so]


def tell_of_batch(tokens: np.ndarray, faults: Mapping[str, int], captions: str | None) -> None:
    """Says once what the first batch of a run shows."""
    rows = len(tokens)
    _, counts = np.unique(tokens, axis=0, return_counts=True)
    repeated = int(counts[counts > 1].sum())
    if repeated >= NOTABLE * rows:
        logging.warning(
            "%d of %d captions of the first batch stand in it more than once (%.0f %%), and the "
            "loss takes equal captions for mismatches of one another, unless config.loss.positives "
            "is 'equal_captions': the loss has a floor, and of the batch no more than %.0f %% can "
            "be told apart. That field, more varied captions, a smaller batch or more classes "
            "help; judge by zero-shot accuracy.",
            repeated,
            rows,
            100 * repeated / rows,
            100 * len(counts) / rows,
        )
    tell_wordless(faults.get(WORDLESS, 0), rows, "captions of the first batch")
    if captions is None and faults.get(LINES):
        logging.info(
            "%d of %d texts of the first batch hold several lines and stay whole; ?captions=lines "
            "in the SPEC makes each line a caption",
            faults[LINES],
            rows,
        )


def tell_wordless(count: int, total: int, what: str) -> None:
    """Warns if many captions are numbers or codes."""
    if count >= NOTABLE * total and count:
        logging.warning(
            "%d of %d %s have no words, as '007' or 'n01440764' have none (%.0f %%): a text "
            "encoder cannot know what they mean. If they are labels, give their names by "
            "?class_names=FILE in the SPEC",
            count,
            total,
            what,
            100 * count / total,
        )
