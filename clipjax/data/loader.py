"""Batches as a pure function of the step, made ahead by worker threads."""

import bisect
import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clipjax.data import permutation
from clipjax.data.bad_examples import BadCount, BadExample, TooManyBadExamples, listed
from clipjax.data.preprocess import Preprocess
from clipjax.data.source import DataSource, Example, SampleError
from clipjax.data.transforms import Transform
from clipjax.data.transforms.captions import choose_text, clean_caption

Batch = dict[str, np.ndarray]

# An unusable example is replaced by another one, drawn by its position; that may be unusable too.
MAX_SUBSTITUTES = 16
# Of the random streams that belong to one position: augmentation, choice of substitutes.
_AUGMENT, _SUBSTITUTE = 0, 1


@dataclasses.dataclass(frozen=True)
class DataStage:
    """How the examples of a range of steps become rows of a batch.

    Attributes:
        until_step: the first step that is not of this stage.
        transforms: applied in order; what they leave is brought to size by `preprocess`.
        tokenizer: captions `[batch]` -> ids `[batch, length]`.
        preprocess: the evaluation's, to the size of the images.
    """

    until_step: int
    transforms: Sequence[Transform]
    tokenizer: Callable[[list[str]], np.ndarray]
    preprocess: Preprocess


class Loader:
    """Host batches of a training run.

    `batch(step)` depends on seed, step, global batch size and the source's fingerprint, and on
    nothing else: there is no iterator state to save, workers and prefetch change nothing, and
    the batches of all processes, one after the other, are the global batch of a single process.

    The stream is a permutation of the source for every epoch; step `s` takes the positions
    `s * batch_size ... (s + 1) * batch_size - 1`, process `i` the i-th part of them. An
    unusable example is replaced in place by one drawn from its position, and counted.

    Args:
        source: where image-text pairs come from.
        transforms: applied in order; what they leave is brought to size by `preprocess`.
        tokenizer: captions `[batch]` -> ids `[batch, length]`.
        batch_size: examples of a step over all processes.
        seed: of order, augmentation and choice of captions.
        preprocess: the evaluation's, `Preprocess.from_spec(spec)`.
        stages: how the examples of the first steps are finished, where not as said above; which
            examples a step holds and what is drawn for them do not depend on it.
        process_index, process_count: which part of every batch is made here.
        num_workers: threads that decode and augment; 0 does it in the caller's.
        prefetch: batches that `iterate` makes ahead.
        max_bad_fraction: of unusable examples among the last `bad_window` of this process.
        bad_window: examples over which that is counted.
        timeout_s: seconds after which a batch that is not finished is an error.

    Raises:
        ValueError: if the source is empty or smaller than a batch, the batch is not divisible by
            the processes, or a number is out of range.
    """

    def __init__(
        self,
        source: DataSource,
        transforms: Sequence[Transform],
        tokenizer: Callable[[list[str]], np.ndarray],
        *,
        batch_size: int,
        seed: int,
        preprocess: Preprocess,
        stages: Sequence[DataStage] = (),
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 2,
        prefetch: int = 2,
        max_bad_fraction: float = 1e-3,
        bad_window: int = 100_000,
        timeout_s: float = 300.0,
    ):
        if len(source) == 0:
            raise ValueError("the data source is empty: there is nothing to train on")
        if len(source) < batch_size:
            # The contrastive loss would count copies of a pair as mismatches of one another.
            raise ValueError(
                f"batch_size is {batch_size}, the data source holds {len(source)} examples: a "
                "batch would hold a pair twice. Make the batch smaller, or add data"
            )
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size is {batch_size}: it has to be a multiple of the number of "
                f"processes, {process_count}"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index is {process_index} of {process_count} processes")
        if num_workers < 0 or prefetch < 0:
            raise ValueError(f"num_workers is {num_workers} and prefetch {prefetch}: none below 0")
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}, expected 0..1")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected 0 or more")
        ends = [stage.until_step for stage in stages]
        if any(low >= high for low, high in itertools.pairwise([0, *ends])):
            raise ValueError(f"stages end at steps {ends}: expected ascending numbers above 0")
        own = DataStage(sys.maxsize, tuple(transforms), tokenizer, preprocess)
        self.source, self._stages, self._stage_ends = source, (*stages, own), ends
        self.batch_size, self.seed = batch_size, seed
        self.local_batch_size = batch_size // process_count
        self._offset = process_index * self.local_batch_size
        self._num_workers, self._prefetch, self._timeout_s = num_workers, prefetch, timeout_s
        self._bad = BadCount(max_bad_fraction, bad_window)
        self._pool = None
        if num_workers:
            self._pool = concurrent.futures.ThreadPoolExecutor(num_workers, "clipjax-loader")
        self._closed = self._hangs = False

    def batch(self, step: int) -> Batch:
        """Makes this process's part of the batch of a step.

        Args:
            step: 0 for the first batch of a run.

        Returns:
            `image` u8 `[local_batch, size, size, 3]` and `text` i32 `[local_batch, length]`; size
            and length are those of the step's stage.

        Raises:
            TooManyBadExamples: if more examples are unusable than `max_bad_fraction`.
            TimeoutError: if it takes longer than `timeout_s`.
        """
        return self._collect(self._submit(step))

    def iterate(self, start_step: int = 0) -> Iterator[tuple[int, Batch]]:
        """Gives `(step, batch)` from a step on, without end, making `prefetch` batches ahead."""
        pending: collections.deque[_Pending] = collections.deque()
        step = start_step
        try:
            while True:
                while len(pending) <= (self._prefetch if self._pool else 0):
                    pending.append(self._submit(step + len(pending)))
                yield step, self._collect(pending.popleft())
                step += 1
        finally:
            for batch in pending:
                for future in batch.parts:
                    future.cancel()

    def counts(self) -> dict[str, int]:
        """Replaced examples by reason, in the batches given out by this process so far."""
        return dict(self._bad.by_reason)

    def bad_examples(self) -> tuple[BadExample, ...]:
        """The last examples that were replaced, newest last."""
        return tuple(self._bad.last)

    def fingerprint(self) -> str:
        """SHA-256 of what decides which examples a step holds, besides seed and batch size."""
        identity = ["clipjax.loader/1", permutation.VERSION, len(self.source)]
        identity.append(self.source.fingerprint())
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def close(self) -> None:
        """Ends the worker threads; one that hangs is not waited for."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=not self._hangs, cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _submit(self, step: int) -> "_Pending":
        if self._closed:
            raise ValueError("the loader is closed")
        if step < 0:
            raise ValueError(f"step is {step}, expected 0 or more")
        start = step * self.batch_size + self._offset
        positions = np.arange(start, start + self.local_batch_size)
        _, indices = permutation.example_index(positions, len(self.source), self.seed)
        stage = self._stages[bisect.bisect_right(self._stage_ends, step)]
        size = stage.preprocess.size
        # A new array for every batch: JAX may use this memory without copying it.
        images = np.empty((len(positions), size, size, 3), np.uint8)
        bounds = np.linspace(0, len(positions), min(len(positions), 4 * self._num_workers or 1) + 1)
        parts = []
        for low, high in zip(bounds[:-1].astype(int), bounds[1:].astype(int), strict=True):
            work = (stage, images[low:high], positions[low:high], indices[low:high])
            if self._pool is not None:
                parts.append(self._pool.submit(self._make_part, *work))
            else:
                parts.append(_done(self._make_part, *work))
        return _Pending(step, images, parts)

    def _collect(self, pending: "_Pending") -> Batch:
        tokens, bad = [], []
        for part in pending.parts:
            try:
                part_tokens, part_bad = part.result(timeout=self._timeout_s)
            except concurrent.futures.TimeoutError as error:
                self._hangs = True
                raise TimeoutError(
                    f"the batch of step {pending.step} is not finished after "
                    f"{self._timeout_s:.0f} s: the storage behind the data source hangs, or "
                    "num_workers is too small"
                ) from error
            tokens.append(part_tokens)
            bad += part_bad
        self._bad.add(len(pending.images), bad)
        return {"image": pending.images, "text": np.concatenate(tokens)}

    def _make_part(
        self, stage: DataStage, images: np.ndarray, positions: np.ndarray, indices: np.ndarray
    ) -> tuple[np.ndarray, list[BadExample]]:
        """Fills a part of the images; gives its tokens and what had to be replaced."""
        texts, bad = [], []
        for slot, (position, index) in enumerate(zip(positions, indices, strict=True)):
            image, text = self._make(stage, int(position), int(index), bad)
            images[slot] = image
            texts.append(text)
        return stage.tokenizer(texts), bad

    def _make(
        self, stage: DataStage, position: int, index: int, bad: list[BadExample]
    ) -> tuple[np.ndarray, str]:
        substitutes = None
        for _ in range(1 + MAX_SUBSTITUTES):
            try:
                example = self.source[index]
                rng = self._rng(position, _AUGMENT)
                return _finish(stage, example, rng)
            except SampleError as error:
                key = error.key or f"example {index}"
                bad.append(BadExample(position, key, error.reason, error.message))
            if substitutes is None:
                substitutes = self._rng(position, _SUBSTITUTE)
            index = int(substitutes.integers(len(self.source)))
        raise TooManyBadExamples(
            f"{MAX_SUBSTITUTES + 1} examples in a row are unusable, the last ones being "
            f"{listed(bad)}. Is this the right data?"
        )

    def _rng(self, position: int, stream: int) -> np.random.Generator:
        # The key is (seed, position), the high word of the counter is the stream.
        bits = np.random.Philox(key=[self.seed, position], counter=[0, 0, 0, stream])
        return np.random.Generator(bits)


def _finish(stage: DataStage, example: Example, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    key = example["key"]
    try:
        for transform in stage.transforms:
            example = transform(example, rng)
        text = clean_caption(choose_text(example["text"], rng))
        image, size = example["image"], stage.preprocess.size
        if not isinstance(image, np.ndarray) or image.shape != (size, size, 3):
            image = stage.preprocess(image)
    except SampleError as error:
        raise type(error)(error.reason, error.message, error.key or key) from error
    return image, text


@dataclasses.dataclass
class _Pending:
    step: int
    images: np.ndarray
    parts: list[concurrent.futures.Future]


def _done(function: Callable, *args) -> concurrent.futures.Future:
    """Runs a function at once and wraps its result, so that 0 workers share the code of many."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(function(*args))
    return future
