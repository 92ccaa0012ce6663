"""Examples become rows of a batch: read, transformed, tokenized, replaced where unusable."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.bad_examples import (
    BadExample,
    TooManyBadExamples,
    listed,
    shard_of,
    worst,
)
from clipjax.data.loading.caption_faults import faults_of
from clipjax.data.loading.token_cache import TokenCache
from clipjax.data.source import (
    DataSource,
    Example,
    SampleError,
    alternatives,
    check_example,
    draw,
    is_filtered,
    read_example,
)
from clipjax.data.transforms import Transform
from clipjax.data.transforms.captions import choose_text, clean_caption, first_of
from clipjax.processes import signals
from clipjax.ranges import named

Tokenize = Callable[[list[str]], np.ndarray]
# An unusable example is replaced by another one, drawn by its position; that may be unusable too,
# and is often left out where a filter takes most.
MAX_UNUSABLE, MAX_FILTERED = 100, 10_000
# Of the random streams that belong to one position: augmentation, choice of substitutes.
_AUGMENT, _SUBSTITUTE = 0, 1


class Part(NamedTuple):
    """Rows of a batch, without their pixels.

    Attributes:
        tokens: i32 `[rows, length]`.
        faults: rows by what is noted of their captions, see `caption_faults.faults_of`.
        others: ids of the other texts of `Finishing`, in their order.
    """

    tokens: np.ndarray
    bad: list[BadExample]
    faults: collections.Counter[str]
    others: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Finishing:
    """How examples become rows of a batch.

    Attributes:
        transforms: applied in order; what they leave is brought to size by `preprocess`.
        preprocess: the evaluation's, to the size of the images.
        batch_size: rows of a batch, over all processes; None is the loader's.
        source: of the examples; None is the loader's.
        other_texts: what else is tokenized, by its key in the batch: a tokenizer, and the caption
            that it reads of an example whose text is a map; empty for what the model reads.
    """

    transforms: Sequence[Transform]
    tokenizer: Tokenize
    preprocess: Preprocess
    batch_size: int | None = None
    source: DataSource | None = None
    other_texts: Mapping[str, tuple[Tokenize, str]] = dataclasses.field(default_factory=dict)

    def prepare(self) -> None:
        """Has transforms load what they need, such as a lexicon, before anything is read.

        Raises:
            ValueError: one cannot.
        """
        for number, transform in enumerate(self.transforms):
            prepare = getattr(transform, "prepare", None)
            if prepare is not None:
                with named(f"transforms[{number}]"):
                    prepare()


class RowMaker:
    """Makes rows of the stream by their positions, alike in any thread or process."""

    def __init__(
        self,
        source: DataSource,
        stages: Sequence[Finishing],
        seed: int,
        *,
        token_cache_bytes: int = 0,
    ):
        self.stages, self.seed = tuple(stages), seed
        self.sources = tuple(source if how.source is None else how.source for how in stages)
        others = max(len(how.other_texts) for how in self.stages)
        share = token_cache_bytes // (1 + others)
        self.tokens = TokenCache(share)
        self.other_tokens = [TokenCache(share) for _ in range(others)]

    def indices(self, start: int, count: int, stage: int = -1) -> np.ndarray:
        """Which examples of a stage's source are at `count` positions from `start` on, i64."""
        return draw(self.sources[stage], np.arange(start, start + count), self.seed)

    def make(
        self, stage: int, start: int, images: np.ndarray, at_work: np.ndarray | None = None
    ) -> Part:
        """Fills `images`, u8 `[rows, size, size, 3]`, with the rows from position `start` on.

        Args:
            at_work: i64 `[1]`, where the index of the example at work is written, -1 at the end:
                should this process die, another one can tell at what.
        """
        at_work = np.empty(1, np.int64) if at_work is None else at_work
        rows: list[tuple[str, ...]] = []
        bad: list[BadExample] = []
        faults: collections.Counter[str] = collections.Counter()
        for slot, index in enumerate(self.indices(start, len(images), stage).tolist()):
            signals.poll_alone()
            image, texts, raw = self.make_row(stage, start + slot, index, bad, at_work)
            images[slot] = image
            rows.append(texts)
            faults.update(faults_of(raw))
        at_work[0] = -1
        how = self.stages[stage]
        tokenizers = (how.tokenizer, *(tokenizer for tokenizer, _ in how.other_texts.values()))
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in tokenizers]
        caches = (self.tokens, *self.other_tokens)
        tokens, *others = (
            cache.tokenize(stage, tokenizer, column)
            for cache, tokenizer, column in zip(caches, tokenizers, columns, strict=False)
        )
        return Part(tokens, bad, faults, tuple(others))

    def make_row(
        self,
        stage: int,
        position: int,
        index: int,
        bad: list[BadExample],
        at_work: np.ndarray,
    ) -> tuple[np.ndarray, tuple[str, ...], Any]:
        """Makes one row; gives its picture, its texts, and what the source called its text."""
        substitutes, first, source = None, len(bad), self.sources[stage]
        allowed = {False: MAX_UNUSABLE, True: MAX_FILTERED}
        while True:
            at_work[0] = index
            try:
                example = read_example(source, index)
                rng = self._rng(position, _AUGMENT)
                return *_finish(self.stages[stage], example, rng), example["text"]
            except SampleError as error:
                key = error.key or f"example {index}"
                bad.append(BadExample(position, key, error.reason, error.message))
                filtered = is_filtered(error.reason)
            allowed[filtered] -= 1
            if allowed[filtered] < 0:
                raise TooManyBadExamples(_no_substitute(bad[first:]))
            if substitutes is None:
                substitutes = self._rng(position, _SUBSTITUTE)
                others = alternatives(source, index)
            index = int(substitutes.integers(others.start, others.stop))

    def _rng(self, position: int, stream: int) -> np.random.Generator:
        # The key is (seed, position), the high word of the counter is the stream.
        bits = np.random.Philox(key=[self.seed, position], counter=[0, 0, 0, stream])
        return np.random.Generator(bits)


def _no_substitute(bad: Sequence[BadExample]) -> str:
    shards = collections.Counter(shard_of(example.key) for example in bad)
    advice = "Is this the right data?"
    if is_filtered(bad[-1].reason):
        advice = (
            "What a filter leaves out is read first: one that takes nearly everything belongs into "
            "the data, by `clipjax data pack` or `?filter=` of the source"
        )
    return (
        f"no example is usable of {len(bad)} that were tried for one place of a batch. "
        f"{worst(shards)}The last ones: {listed(bad)}. {advice}"
    )


def _finish(
    stage: Finishing, example: Example, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[str, ...]]:
    key, captions = example["key"], example["text"]
    try:
        for number, transform in enumerate(stage.transforms):
            name = getattr(transform, "__name__", type(transform).__name__)
            example = check_example(transform(example, rng), f"transforms[{number}] ({name})")
        text = clean_caption(choose_text(example["text"], rng))
        others = [
            clean_caption(first_of(captions, name)) if name else text
            for _, name in stage.other_texts.values()
        ]
        image, size = example["image"], stage.preprocess.size
        shape = (size, size, 3)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
            image = stage.preprocess(image)
    except SampleError as error:
        raise type(error)(error.reason, error.message, error.key or key) from error
    return image, (text, *others)
