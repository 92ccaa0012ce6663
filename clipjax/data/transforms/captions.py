"""Transforms of the text: which caption, in which words."""

import dataclasses
import unicodedata

import numpy as np

from clipjax.data.source import Example, SampleError
from clipjax.data.transforms.ranges import check_probability


def choose_text(text: str | tuple[str, ...], rng: np.random.Generator) -> str:
    """Draws one of several captions, each as often as another."""
    return text if isinstance(text, str) else text[int(rng.integers(len(text)))]


def clean_caption(text: str | bytes) -> str:
    """Brings a caption to Unicode NFC without NULs; SampleError if nothing is left of it."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SampleError("text_encoding", f"the caption is not UTF-8: {error}") from error
    if not isinstance(text, str):
        raise SampleError("text_type", f"the caption is {type(text).__name__}, expected text")
    text = text.replace("\0", "")
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    if not text or text.isspace():
        raise SampleError("text_empty", "the caption is empty")
    return text


@dataclasses.dataclass(frozen=True)
class ChooseCaption:
    """Takes the first caption of an image, or one of the others.

    Without this transform, all captions are drawn equally often.

    Args:
        first: probability of the first.
    """

    first: float = 0.8

    def __post_init__(self):
        check_probability(self, "first")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces a tuple of captions by one caption."""
        text = example["text"]
        if isinstance(text, str):
            return example
        others = text[1:]
        if not others or rng.random() < self.first:
            return {**example, "text": text[0]}
        return {**example, "text": choose_text(others, rng)}


@dataclasses.dataclass(frozen=True)
class CaptionTemplate:
    """Puts the caption into a sentence, e.g. `a photo of a {}`.

    Args:
        templates: sentences, each with one `{}`.
        probability: how often.

    Raises:
        ValueError: if a template has no `{}`.
    """

    templates: tuple[str, ...]
    probability: float = 0.5

    def __post_init__(self):
        check_probability(self, "probability")
        wrong = [t for t in self.templates if t.count("{}") != 1]
        if wrong or not self.templates or isinstance(self.templates, str):
            raise ValueError(f"caption_template.templates need one {{}} each: {wrong}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the text by a sentence, or leaves it."""
        text = choose_text(example["text"], rng)
        if rng.random() < self.probability:
            template = self.templates[int(rng.integers(len(self.templates)))]
            text = template.replace("{}", text)
        return {**example, "text": text}


@dataclasses.dataclass(frozen=True)
class DropWord:
    """Leaves one word out of a caption that has several.

    Args:
        probability: how often.
    """

    probability: float = 0.25

    def __post_init__(self):
        check_probability(self, "probability")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the text by all but one of its words, or leaves it."""
        text = choose_text(example["text"], rng)
        words = text.split()
        if len(words) > 1 and rng.random() < self.probability:
            del words[int(rng.integers(len(words)))]
            text = " ".join(words)
        return {**example, "text": text}
