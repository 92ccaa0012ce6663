"""Transforms that take a part of a caption: some of its words, a chunk, what a prompt is about."""

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from clipjax.data.source import Example
from clipjax.data.transforms.captions import Templated, choose_text
from clipjax.data.transforms.word_classes import class_of, load_lexicon
from clipjax.ranges import Choice, Ranged, Rule, count

# A word with its apostrophes and hyphens, or marks: what the tokenizers split at, too.
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*|\s*\n\s*")


@dataclasses.dataclass(frozen=True)
class MaskWords(Ranged):
    """Keeps some words of a caption that has more, in their order.

    The tokenizer still cuts what is longer than the context, as words of several tokens may be.

    Args:
        max_words: how many are kept; punctuation marks count as words.
        kind: `truncation` keeps the first words, `random` any, `block` as many that follow one
            another, `syntax` nouns before adjectives before verbs before the rest, of a class the
            first ones; it needs the extra [text].

    Reference: arXiv:2305.07017, section 3.
    """

    max_words: int
    kind: str = "random"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "max_words": count(),
        "kind": Choice(("truncation", "random", "block", "syntax")),
    }

    def prepare(self) -> None:
        """Reads the lexicon where one is needed: it is there, or not, before step 0."""
        if self.kind == "syntax":
            load_lexicon()

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the text by some of its words, or leaves it."""
        text = choose_text(example["text"], rng)
        words = list(_WORD.finditer(text))
        if len(words) > self.max_words:
            kept = [words[number] for number in self._kept([w[0] for w in words], rng)]
            text, end = kept[0][0], kept[0].end()
            for word in kept[1:]:  # what stood together stays so: a mark at its word
                text += word[0] if word.start() == end else f" {word[0]}"
                end = word.end()
        return {**example, "text": text}

    def _kept(self, words: list[str], rng: np.random.Generator) -> list[int]:
        total, number = len(words), self.max_words
        if self.kind == "random":
            return sorted(rng.choice(total, number, replace=False).tolist())
        start = int(rng.integers(total - number + 1)) if self.kind == "block" else 0
        order = list(range(start, total))
        if self.kind == "syntax":
            order.sort(key=lambda place: class_of(words[place]))  # which keeps the order of equals
        return sorted(order[:number])


@dataclasses.dataclass(frozen=True)
class ChooseChunk(Ranged):
    """Takes one chunk of a long caption, each as often as another.

    A chunk is as many sentences that follow one another as have `max_words` words together, from
    the first one on; each sentence is in one chunk. A longer sentence is one by itself.

    Args:
        max_words: of a chunk, separated by white space; a caption of no more is left as it is.
    """

    max_words: int = 50

    ranges: ClassVar[Mapping[str, Rule]] = {"max_words": count()}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the text by some of its sentences, or leaves it."""
        text = choose_text(example["text"], rng)
        if len(text.split()) > self.max_words:
            chunks = self.chunks(text)
            text = chunks[int(rng.integers(len(chunks)))]
        return {**example, "text": text}

    def chunks(self, text: str) -> list[str]:
        """Cuts a text that is not empty into its chunks."""
        chunks: list[list[str]] = []
        room = 0
        for sentence in filter(None, _SENTENCE_END.split(text.strip())):
            length = len(sentence.split())
            if length > room:
                chunks.append([])
                room = self.max_words
            chunks[-1].append(sentence)
            room -= length
        return [" ".join(chunk) for chunk in chunks]


@dataclasses.dataclass(frozen=True)
class DropPrompt(Templated):
    """Takes a caption out of the sentence that it was put into: `a photo of a cat` is `cat`.

    Of several templates that fit, the one that leaves the shortest text is taken; a caption that
    fits none stays as it is.

    Args:
        templates: the sentences, such as `a photo of a {}`.
        probability: how often, of the captions that fit.
    """

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the text by what stands in its template, or leaves it."""
        text = choose_text(example["text"], rng)
        if rng.random() < self.probability:
            text = min([text, *self._bare(text)], key=len)
        return {**example, "text": text}

    def _bare(self, text: str) -> list[str]:
        found = []
        for template in self.templates:
            before, after = template.split("{}")
            if text.startswith(before) and text.endswith(after):
                found.append(text[len(before) : len(text) - len(after)])
        return [bare for bare in found if bare.strip()]
