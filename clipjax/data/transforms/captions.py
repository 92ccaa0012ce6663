"""Transforms of the text: which caption, in which words."""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from clipjax.data.source import Example, SampleError, Texts
from clipjax.data.storage.text_files import not_utf8
from clipjax.ranges import (
    FRACTION,
    PATTERNS,
    POSITIVE,
    AnyOf,
    FieldError,
    Group,
    Many,
    Number,
    Optional,
    Ranged,
    Rule,
    Text,
    count,
    show,
)

# Of a caption; no context has room for what follows. Tokenizers need seconds for a megabyte.
MAX_CHARS = 1 << 16


_UNNAMED = (
    ", and its label has no words: give the names of the classes, ?class_names=FILE in the SPEC, a "
    "name a line, or imagenet"
)


def choose_text(text: Texts | bytes, rng: np.random.Generator) -> str:
    """Draws one of several captions, each as often as another.

    Of a map, a name is drawn first: languages come equally often, whatever the number of
    captions in each.
    """
    if isinstance(text, Mapping):
        names = sorted(text)
        return choose_text(text[names[int(rng.integers(len(names)))]], rng) if names else ""
    if not isinstance(text, str | bytes):
        if not hasattr(text, "__len__"):
            return clean_caption(text)  # which refuses it
        text = text[int(rng.integers(len(text)))] if text else ""
    return _decoded(text) if isinstance(text, bytes) else text


def first_of(text: Texts | bytes, name: str) -> Any:
    """The first caption of one name in a map of captions; SampleError if it has none of it."""
    found = text.get(name) if isinstance(text, Mapping) else None
    if found is not None and not isinstance(found, str | bytes):
        found = next(iter(found), None)
    if not found:
        names = ", ".join(sorted(text)) if isinstance(text, Mapping) else "no names"
        raise SampleError("no_such_caption", f"there is no caption {name!r}; the text has {names}")
    return found


def matches_any(text: Texts | bytes, patterns: Iterable[str]) -> bool:
    """Whether one of some regular expressions is found in a caption, or in several as one text."""
    written = str(text)
    return any(re.search(pattern, written) for pattern in patterns)  # re keeps them compiled


def clean_caption(text: Any) -> str:
    """Brings a caption to Unicode NFC without NULs; SampleError if nothing is left of it.

    What follows its first `MAX_CHARS` characters is left out.
    """
    if isinstance(text, bytes):
        text = _decoded(text)
    if not isinstance(text, str):
        raise SampleError("text_type", f"the caption is {type(text).__name__}, expected text")
    text = text[:MAX_CHARS].replace("\0", "")
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    if not text or text.isspace():
        raise SampleError("text_empty", "the caption is empty")
    return text


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError("text_encoding", f"the caption {not_utf8(error)}") from error


@dataclasses.dataclass(frozen=True)
class ChooseCaption(Ranged):
    """Takes the first caption of an image or one of the others, or draws one by weights.

    Without this transform, all captions are drawn equally often, and all languages of a map.

    Args:
        first: probability of the first of several captions; the others share the rest.
        weights: in place of `first`. A list weighs the captions in their order, those beyond it
            are not drawn: `(0.7, 0.3)`. A map weighs the names of captions that are a map from
            language, or kind, to text: `{"en": 2, "de": 1}`; those without a weight are not drawn.
            Where some are missing, the weights of the others count. A single caption, as of a
            source without languages in a mix, is taken as it is.
        temperature: a weight w counts as w^(1 / temperature). With the numbers of captions of each
            language as weights, 1 draws as they come and a high temperature all languages alike
            (arXiv:1907.05019).
    """

    first: float = 0.8
    weights: tuple[float, ...] | Mapping[str, float] | None = None
    temperature: float = 1.0

    ranges: ClassVar[Mapping[str, Rule]] = {
        "first": FRACTION,
        "weights": Optional(
            AnyOf((Many(Number(0), "numbers from 0"), Group("name -> number from 0"))), "as `first`"
        ),
        "temperature": POSITIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        weights: Any = () if self.weights is None else self.weights
        values = list(weights.values() if isinstance(weights, Mapping) else weights)
        nameless = isinstance(weights, Mapping) and not all(isinstance(n, str) for n in weights)
        good = not nameless and all(map(Number(0).accepts, values)) and any(values)
        if self.weights is not None and not good:
            raise FieldError(
                f"weights = {show(self.weights)}: expected finite numbers from 0, at least one of "
                "them above 0, as a list, or as a map by name"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces several captions by one of them."""
        text = example["text"]
        if not text:
            named = "" if "label" not in example else _UNNAMED
            raise SampleError("text_empty", f"the example has no caption{named}")
        if self.weights is not None:
            return {**example, "text": self._by_weight(text, rng)}
        if isinstance(text, str | bytes | Mapping):
            return {**example, "text": choose_text(text, rng)}
        others = text[1:]
        if not others or rng.random() < self.first:
            return {**example, "text": text[0]}
        return {**example, "text": choose_text(others, rng)}

    def _by_weight(self, text: Any, rng: np.random.Generator) -> str:
        named = isinstance(self.weights, Mapping)
        if isinstance(text, str | bytes):  # there is nothing to choose
            return choose_text(text, rng)
        if isinstance(text, Mapping) != named:
            raise ValueError(
                f"choose_caption.weights is a {type(self.weights).__name__}, the captions are a "
                f"{type(text).__name__}: a map of weights belongs to a map of captions (several "
                "columns, ?text_field=a,b), a list to a list; change weights, or leave them out"
            )
        there = text.keys() if named else range(len(text))
        weights: Any = self.weights
        all_pairs = sorted(weights.items()) if named else enumerate(weights)
        pairs = [(name, weight) for name, weight in all_pairs if name in there and weight > 0]
        if not pairs:
            raise SampleError("filtered_weights", f"no caption has a weight: it has {list(there)}")
        # w^(1 / t) over that of the largest, by logarithms: no power overflows, or all vanish.
        logs = [math.log(weight) for _, weight in pairs]
        ends = np.cumsum([math.exp((log - max(logs)) / self.temperature) for log in logs])
        place = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
        return choose_text(text[pairs[min(place, len(pairs) - 1)][0]], rng)


@dataclasses.dataclass(frozen=True)
class FilterCaption(Ranged):
    """Leaves out captions that are too short, too long, or match a pattern.

    An example that keeps no caption is replaced by another and counted: `filtered_short`,
    `filtered_long` or `filtered_pattern`. These counts do not add to `max_bad_fraction`. A filter
    that takes most of a dataset belongs into its preparation, or into `?filter=` of the source.

    Args:
        min_words, max_words: separated by white space.
        min_chars, max_chars: after white space at both ends is cut off.
        patterns: regular expressions; a caption in which one is found is left out.
    """

    min_words: int = 0
    max_words: int | None = None
    min_chars: int = 1
    max_chars: int | None = None
    patterns: tuple[str, ...] = ()

    ranges: ClassVar[Mapping[str, Rule]] = {
        "min_words": count(0),
        "max_words": Optional(count(0), "no limit"),
        "min_chars": count(0),
        "max_chars": Optional(count(0), "no limit"),
        "patterns": PATTERNS,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for unit in ("words", "chars"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if high is not None and high < low:
                raise FieldError(f"max_{unit} = {high}: expected min_{unit} = {low} or more")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Keeps the captions that pass; SampleError if none does."""
        reasons: list[str] = []
        text = self._kept(example["text"], reasons)
        if not text:
            reason = reasons[0] if reasons else "filtered_short"
            raise SampleError(reason, "no caption passes filter_caption")
        return {**example, "text": text}

    def _kept(self, text: Texts, reasons: list[str]) -> Texts:
        if isinstance(text, Mapping):
            kept = {name: self._kept(part, reasons) for name, part in text.items()}
            return {name: part for name, part in kept.items() if part}
        if isinstance(text, bytes):
            text = _decoded(text)
        if not isinstance(text, str):
            return tuple(part for part in text if self._kept(part, reasons))
        reason = self._reason(text)
        if reason is not None:
            reasons.append(reason)
        return "" if reason else text

    def _reason(self, text: str) -> str | None:
        words, chars = len(text.split()), len(text.strip())
        if words < self.min_words or chars < self.min_chars:
            return "filtered_short"
        too_many = self.max_words is not None and words > self.max_words
        if too_many or (self.max_chars is not None and chars > self.max_chars):
            return "filtered_long"
        if matches_any(text, self.patterns):
            return "filtered_pattern"
        return None


@dataclasses.dataclass(frozen=True)
class Templated(Ranged):
    """Base of transforms with sentences for a caption, e.g. `a photo of a {}`."""

    templates: tuple[str, ...]
    probability: float = 0.5

    ranges: ClassVar[Mapping[str, Rule]] = {
        "templates": Many(Text(), "sentences, each with one {}", at_least=1),
        "probability": FRACTION,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, template in enumerate(self.templates):
            if template.count("{}") != 1:
                raise FieldError(
                    f"templates[{number}] = {show(template)}: expected a sentence with one {{}}"
                )


@dataclasses.dataclass(frozen=True)
class CaptionTemplate(Templated):
    """Puts the caption into a sentence, e.g. `a photo of a {}`."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the text by a sentence, or leaves it."""
        text = choose_text(example["text"], rng)
        if rng.random() < self.probability:
            template = self.templates[int(rng.integers(len(self.templates)))]
            text = template.replace("{}", text)
        return {**example, "text": text}


@dataclasses.dataclass(frozen=True)
class DropWord(Ranged):
    """Leaves one word out of a caption that has several."""

    probability: float = 0.25

    ranges: ClassVar[Mapping[str, Rule]] = {"probability": FRACTION}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the text by all but one of its words, or leaves it."""
        text = choose_text(example["text"], rng)
        words = text.split()
        if len(words) > 1 and rng.random() < self.probability:
            del words[int(rng.integers(len(words)))]
            text = " ".join(words)
        return {**example, "text": text}
