"""What is done to a caption before it is tokenized: published rules, as named steps."""

import html
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import ftfy
from ftfy.badness import is_bad

# Repairing costs more than all the rest of a tokenizer's work, so what it leaves as it is goes
# past it, and so does text in which only quotes are curly. No control characters, ligatures,
# full-width forms or surrogates, for each of which ftfy has a rule, and no `&` that could begin an
# entity:
_ASCII = r"\t\x20-\x25\x27-\x7e"
_OTHERS = (
    r"\xa0-\u0131\u0134-\u0148\u014a-\u01c3\u01cd-\u01f0\u01f4-\u02b7\u02bc\u0300-\u1fff\u2010-\u2027"
    r"\u2030-\u2069\u2070-\u2fff\u3001-\ud7ff\ue000-\ufaff\ufb07-\ufdff\ufe00-\ufe1f"
    r"\U00010000-\U0010ffff"
)
_STRAIGHT = {ord(c): "'" for c in "\u02bc\u2018\u2019\u201a\u201b"} | dict.fromkeys(
    range(0x201C, 0x2020), '"'
)
SAFE_ASCII = re.compile(f"[{_ASCII}\n]*(?:& [{_ASCII}\n]*)*")
# ftfy looks for mojibake line by line.
SAFE_LINE = re.compile(f"[{_ASCII}{_OTHERS}]*(?:& [{_ASCII}{_OTHERS}]*)*")
_NUMBERS = re.compile(r"&#0*([0-9]+)")
_SURROGATES = re.compile("[\ud800-\udfff]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def fix_text(text: str) -> str:
    """Repairs mojibake, curly quotes and the like, then resolves HTML entities twice."""
    if SAFE_ASCII.fullmatch(text):
        return text
    if SAFE_LINE.fullmatch(text) and unicodedata.is_normalized("NFC", text) and not is_bad(text):
        straight = text.translate(_STRAIGHT)
        if straight == text or not is_bad(straight):
            return straight
    return _unescape(_unescape(ftfy.fix_text(text)))


def _unescape(text: str) -> str:
    """Resolves HTML entities, also of numbers so long that Python refuses to read them."""
    try:
        return html.unescape(text)
    except ValueError:  # eight digits are beyond every character, as more are
        return html.unescape(_NUMBERS.sub(lambda found: f"&#{found[1][:8]}", text))


def collapse_whitespace(text: str) -> str:
    """One space between words, none at the ends."""
    return " ".join(text.split())


def lower_each_character(text: str) -> str:
    """Lower case without regard to neighbours: a sigma is never the one that ends a word."""
    if "\N{GREEK CAPITAL LETTER SIGMA}" in text:
        return "".join(map(str.lower, text))
    return text.lower()


def contract_of(tokenizer: Any, name: str, sha256: str, *fields: str) -> dict[str, Any]:
    """What a checkpoint records, so that it is never fed ids of another tokenizer.

    Args:
        tokenizer: has an attribute for each field, and those that all tokenizers have.
        name: in the table of tokenizers.
        sha256: of the vocabulary's file.
        *fields: what it is known by besides.
    """
    fields = ("vocab_size", "context_length", "pad_id", *fields)
    known = {"name": name, "sha256": sha256}
    return known | {field: getattr(tokenizer, field) for field in fields}


CLEANING: dict[str, Callable[[str], str]] = {
    "fix_text": fix_text,
    "underscores_to_spaces": lambda text: text.replace("_", " "),
    "strip_punctuation": lambda text: text.translate(_NO_PUNCTUATION),
    "lower": str.lower,
    "lower_each_character": lower_each_character,
    "collapse_whitespace": collapse_whitespace,
}


class Cleaner:
    """Checks captions and cleans them, step by step.

    Raises:
        ValueError: for an unknown step.
    """

    def __init__(self, steps: Sequence[str] = ()):
        unknown = [step for step in steps if step not in CLEANING]
        if isinstance(steps, str) or unknown:
            raise ValueError(
                f"tokenizer.cleaning is {steps!r}; it is a sequence of "
                f"{', '.join(map(repr, CLEANING))}"
            )
        self.steps = tuple(steps)
        self._functions = [CLEANING[step] for step in steps]

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Cleans captions `[batch]`; ValueError for one string, or what is no string."""
        if isinstance(texts, str):
            raise ValueError("texts is one string: pass a list of captions")
        return [self.clean(text) for text in texts]

    def clean(self, text: str) -> str:
        """Cleans one caption; half of a surrogate pair, which no encoder takes, becomes U+FFFD."""
        if not isinstance(text, str):
            raise ValueError(f"a caption is {type(text).__name__}, expected str: {text!r}")
        for function in self._functions:
            text = function(text)
        if not text.isascii() and _SURROGATES.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text
