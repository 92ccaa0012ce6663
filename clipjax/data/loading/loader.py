"""Batches as a pure function of the step, made ahead by workers."""

import bisect
import collections
import concurrent.futures
import contextlib
import itertools
import json
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clipjax import faults
from clipjax.data import permutation
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.bad_examples import BadCount, BadExample, share_of
from clipjax.data.loading.caption_faults import tell_of_batch
from clipjax.data.loading.rows import Finishing, Part, RowMaker, Tokenize
from clipjax.data.loading.workers import Pending, Threads, Workers
from clipjax.data.loading.workers_processes import Processes
from clipjax.data.source import DataSource, check_source, draw
from clipjax.data.transforms import Transform
from clipjax.files import sha256
from clipjax.prefetching import begun_ahead
from clipjax.processes import signals
from clipjax.ranges import FRACTION, POSITIVE, Choice, Rule, whole

Batch = dict[str, np.ndarray]
# Who makes the rows of a batch; without workers it is the caller.
WORKERS: dict[str, Callable[..., Workers]] = {"threads": Threads, "processes": Processes}
_INT64 = whole(0, 2**63 - 1)
_POLL_S = 0.5  # between two looks, while waiting, at whether the run is to stop


class Loader:
    """Host batches of a training run.

    `batch(step)` depends on seed, step, global batch size and the source's fingerprint, and on
    nothing else: there is no iterator state to save, workers and prefetch change nothing, and
    the batches of all processes, one after the other, are the global batch of a single process.

    The stream is a permutation of the source for every epoch; step `s` takes the positions
    `s * batch_size ... (s + 1) * batch_size - 1`, process `i` the i-th part of them. With stages,
    stage k has the steps `f_k ... f_(k+1) - 1`, batches of `b_k` examples and a source, in whose
    stream it goes on where the last stage with that source ended: step `s` of it begins at position
    `(s - f_k) b_k`, plus `(f_(j+1) - f_j) b_j` of every earlier stage j with the same source. An
    unusable example is replaced in place by one drawn from its position, and counted.

    The arguments are those of `make_loader`, and:

    Args:
        preprocess: the evaluation's, `Preprocess.from_spec(spec)`.
        stages: how the examples of the first steps are finished, where not as said above, and from
            what source and how many: pairs of the first step that is not of a stage, and how. Which
            examples stand at a position of a source, and what is drawn there, do not depend on it.
        other_texts: what else is tokenized after the stages, see `Finishing`.
        token_cache_bytes: how many bytes of token ids all workers together keep for later epochs.
        max_bad_fraction: the fraction of this process's last `bad_window` examples that may be
            unusable.
        bad_window: how many of the newest examples that is counted over.
        timeout_s: seconds after which a part of a batch that is not finished is an error; a
            process is then ended and its part made anew, once.

    Raises:
        ValueError: if the source is none, empty or smaller than a batch, the batch is not divisible
            by the processes, or a number is out of range.
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
        stages: Sequence[tuple[int, Finishing]] = (),
        other_texts: Mapping[str, tuple[Tokenize, str]] | None = None,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 2,
        workers: str = "threads",
        token_cache_bytes: int = 256 << 20,
        prefetch: int = 2,
        max_bad_fraction: float = 1e-3,
        bad_window: int = 100_000,
        timeout_s: float = 300.0,
    ):
        checks: Sequence[tuple[str, Any, Rule]] = (
            ("batch_size", batch_size, whole()),
            ("seed", seed, _INT64),
            ("process_count", process_count, whole()),
            ("num_workers", num_workers, whole(0)),
            ("workers", workers, Choice(tuple(WORKERS))),
            ("token_cache_bytes", token_cache_bytes, _INT64),
            ("prefetch", prefetch, whole(0)),
            ("max_bad_fraction", max_bad_fraction, FRACTION),
            ("bad_window", bad_window, whole()),
            ("timeout_s", timeout_s, POSITIVE),
        )
        for name, value, rule in checks:
            rule.check(_plain(value), name)
        own = Finishing(
            tuple(transforms), tokenizer, preprocess, _plain(batch_size), source, other_texts or {}
        )
        finishings = [*(how for _, how in stages), own]
        for how in finishings:
            how.prepare()
        sources = [source if how.source is None else how.source for how in finishings]
        sizes = [_plain(how.batch_size or batch_size) for how in finishings]
        for given, size in zip(sources, sizes, strict=True):
            check_source(given, "source")
            if len(given) == 0:
                raise ValueError("the data source is empty: there is nothing to train on")
            if len(given) < size:
                # The contrastive loss would count copies of a pair as mismatches of one another.
                raise ValueError(
                    f"batch_size is {size}, the data source holds {len(given)} examples: a "
                    "batch would hold a pair twice. Make the batch smaller, or add data"
                )
            if size % process_count:
                raise ValueError(
                    f"batch_size is {size}: it has to be a multiple of the number of "
                    f"processes, {process_count}"
                )
        whole(0, process_count - 1).check(_plain(process_index), "process_index")
        ends = [until_step for until_step, _ in stages]
        if any(low >= high for low, high in itertools.pairwise([0, *ends])):
            raise ValueError(f"stages end at steps {ends}: expected ascending numbers above 0")
        self.source, self.batch_size, self.seed = source, _plain(batch_size), _plain(seed)
        self._stage_ends, self._sources, self._batch_sizes = ends, sources, sizes
        self._other_texts = [tuple(how.other_texts) for how in finishings]
        self._begins: list[int] = []  # where in the stream of its source each stage begins
        taken: collections.Counter[int] = collections.Counter()
        for begin, end, stream, size in zip(
            [0, *ends], [*ends, 0], map(id, sources), sizes, strict=True
        ):
            self._begins.append(taken[stream])
            taken[stream] += (end - begin) * size
        self._process = process_index, process_count
        self._prefetch = prefetch
        self._bad = BadCount(max_bad_fraction, bad_window)
        # Threads share what they keep, processes do not.
        share = token_cache_bytes // (max(1, num_workers) if workers == "processes" else 1)
        maker = RowMaker(source, finishings, self.seed, token_cache_bytes=share)
        make_workers = WORKERS[workers] if num_workers else Threads
        self.workers = make_workers(maker, num_workers, timeout_s)
        self._closed = self._hangs = self._told = False
        # A loader that is dropped leaves no process behind.
        weakref.finalize(self, self.workers.close, wait=False)

    def batch(self, step: int) -> Batch:
        """Makes this process's part of the batch of a step.

        Returns:
            `image` u8 `[local_batch, size, size, 3]` and `text` i32 `[local_batch, length]`; size
            and length are those of the step's stage.

        Raises:
            ValueError: if the step is no whole number from 0, an example or what a transform gives
                is no dict of image, text and key, or the tokenizer's ids are none.
            TooManyBadExamples: if more examples are unusable than `max_bad_fraction`.
            TimeoutError: if it takes longer than `timeout_s`.
            WorkerError: if two processes, one after the other, died or hung at the same part.
        """
        return self._collect(self._submit(step))

    def iterate(self, start_step: int = 0) -> Iterator[tuple[int, Batch]]:
        """Gives `(step, batch)` from a step on, without end, making `prefetch` batches ahead.

        Returns:
            Steps with their `image` u8 `[local_batch, size, size, 3]` and `text` i32
            `[local_batch, length]`.

        Raises:
            TooManyBadExamples, TimeoutError, WorkerError: as `batch`.
        """
        ahead = self._prefetch if self.workers.ahead else 0
        batches = begun_ahead(self._submit, itertools.count(start_step), ahead=ahead)
        with contextlib.closing(batches):
            for pending in batches:
                yield pending.step, self._collect(pending)

    def indices(self, step: int) -> np.ndarray:
        """Which examples of its source the whole batch of a step is made of, `[batch]` int64.

        An unusable one among them is replaced by another (see `bad_examples`).
        """
        stage, start, size = self._place(_plain(step))
        return draw(self._sources[stage], np.arange(start, start + size), self.seed)

    def counts(self) -> dict[str, int]:
        """Replaced examples by reason, in the batches given out by this process so far.

        `worker_restarts` among them are processes that were lost and replaced; the batches are the
        same.
        """
        return dict(self._bad.by_reason) | self.workers.counts()

    def bad_examples(self) -> tuple[BadExample, ...]:
        """The last examples that were replaced, newest last."""
        return tuple(self._bad.last)

    def bad_state(self) -> dict[str, Any]:
        """Gives what this process replaced so far, as a checkpoint keeps it: see `BadCount`."""
        return self._bad.state()

    def restore_bad(self, state: Mapping[str, Any]) -> None:
        """Goes on counting from the sum of all processes' states.

        Which examples a step holds does not depend on it.
        """
        self._bad.restore(share_of(state, *self._process))

    def fingerprint(self) -> str:
        """SHA-256 of what decides which examples a step holds, besides seed and batch size."""
        identity = ["clipjax.loader/1", permutation.VERSION, len(self.source)]
        identity.append(self.source.fingerprint())
        others = {id(other): other for other in self._sources if other is not self.source}
        identity += [[len(other), other.fingerprint()] for other in others.values()]
        return sha256(json.dumps(identity))

    def close(self) -> None:
        """Ends the workers; a thread that hangs is not waited for."""
        self._closed = True
        self.workers.close(wait=not self._hangs)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _submit(self, step: int) -> Pending:
        if self._closed:
            raise ValueError("the loader is closed")
        step = _plain(step)
        _INT64.check(step, "step")
        stage, start, size = self._place(step)
        index, count = self._process
        return self.workers.submit(step, stage, start + index * (size // count), size // count)

    def _place(self, step: int) -> tuple[int, int, int]:
        """The stage of a step, the first position of its batch and how many there are."""
        stage = bisect.bisect_right(self._stage_ends, step)
        begin = self._stage_ends[stage - 1] if stage else 0
        size = self._batch_sizes[stage]
        return stage, self._begins[stage] + (step - begin) * size, size

    def _collect(self, pending: Pending) -> Batch:
        parts: list[Part] = []
        faults.point("data.wait", pending.step)
        signals.poll_alone()
        for part in pending.parts:
            try:
                parts.append(_wait_for(part, self.workers.wait_s))
            except concurrent.futures.TimeoutError as error:
                if part.done() and part.exception() is error:
                    raise  # it is the source's own
                self._hangs = True
                raise TimeoutError(
                    f"the batch of step {pending.step} is not finished after "
                    f"{self.workers.wait_s:.0f} s: the storage behind the data source hangs, or "
                    "num_workers is too small"
                ) from error
        self._bad.add(len(pending.images), [bad for part in parts for bad in part.bad])
        texts = []
        for kind in zip(*((part.tokens, *part.others) for part in parts), strict=True):
            lengths = sorted({rows.shape[1] for rows in kind})
            if len(lengths) > 1:
                raise ValueError(
                    f"the tokenizer gave rows of {lengths[0]} and of {lengths[-1]} ids in the "
                    f"batch of step {pending.step}, expected one length whatever the texts"
                )
            texts.append(np.concatenate(kind))
        if not self._told and self._process[0] == 0:
            self._told = True
            counted = sum((part.faults for part in parts), collections.Counter())
            tell_of_batch(texts[0], counted, getattr(self.source, "captions", None))
        stage, *_ = self._place(pending.step)
        keys = ("text", *self._other_texts[stage])
        return {"image": pending.images, **dict(zip(keys, texts, strict=True))}


def _wait_for(part: concurrent.futures.Future[Part], timeout_s: float | None) -> Part:
    """The result of a part; an error to the one who waits if the run is asked to stop meanwhile."""
    if part.done():
        return part.result()
    end = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left_s = end - time.monotonic()
        done, _ = concurrent.futures.wait([part], timeout=max(0.0, min(_POLL_S, left_s)))
        if done or left_s <= 0:
            return part.result(timeout=0)
        signals.poll_alone()


def _plain(value: Any) -> Any:
    """A number of NumPy or JAX as Python's own."""
    return value.item() if getattr(value, "shape", None) == () else value
