"""Reading a source's images and embedding them: none is left out without being counted."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from clipjax.array_types import Patches, PyTree
from clipjax.data.classes.numbers import LabelError
from clipjax.data.images.naflex import PatchPreprocess
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.source import Example, ExampleError, read_example
from clipjax.data.storage.retrying import is_of_the_system
from clipjax.encoding.batches import RowLayout, run_batches
from clipjax.encoding.compiled import embed_fn
from clipjax.encoding.encode_fns import EncodeFn
from clipjax.processes.distributed import gather

_NAMED, _WARNED = 5, 20  # bad images that an error message names, and that are logged
_PADDING = np.iinfo(np.int64).max  # the index of no example


class ImageBatch(NamedTuple):
    """Rows of a batch as read by one process.

    Attributes:
        images: `[rows, size, size, 3]`, uint8, or Patches; blank where `mask` is False.
        mask: `[rows]`, bool; False for padding and for images that do not decode.
        examples: the source's examples; None for padding and for what cannot be read at all.
    """

    images: np.ndarray | Patches
    mask: np.ndarray
    examples: list[Any]


class ImageReader:
    """Reads and preprocesses examples by index, in threads.

    Args:
        preprocess: (bytes | image) -> uint8 `[size, size, 3]`, or Patches; with a method `blank`.
        max_bad: examples that are tolerated whose image does not decode, or which cannot be read.
        check: of an example as the source gives it; raises LabelError.
        alone: whether this process reads for itself, and raises at once; by default, where it is
            the only one.
        threads: that read.
    """

    def __init__(
        self,
        source: Any,
        preprocess: Preprocess | PatchPreprocess,
        *,
        max_bad: int,
        where: str,
        check: Callable[[Example], object] = lambda example: None,
        alone: bool | None = None,
        threads: int = 4,
    ) -> None:
        self._source = source
        self._preprocess = preprocess
        self._max_bad = max_bad
        self._where = where
        self._check = check
        self._alone = jax.process_count() == 1 if alone is None else alone
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="eval_images")
        self._lock = threading.Lock()
        self.bad: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self._refused: str | None = None

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, indices: Sequence[int] | np.ndarray) -> ImageBatch:
        """Reads the examples at `indices`; those past the end are padding.

        Raises:
            ValueError: more than `max_bad` images so far that do not decode, or a label without a
                class, in a single process.
        """
        images = [self._preprocess.blank()] * len(indices)
        mask = np.zeros(len(indices), bool)
        examples: list[Any] = [None] * len(indices)
        rows = [row for row, index in enumerate(indices) if index < len(self._source)]
        found = self._pool.map(self.read_one, [int(indices[row]) for row in rows])
        for row, (example, pixels) in zip(rows, found, strict=True):
            examples[row] = example
            if pixels is not None:
                images[row], mask[row] = pixels, True
        # One process of several must not leave the others waiting in a collective: they raise
        # together at the end, by the count over all of them.
        if self._alone:
            self._judge(self._refused, len(self.bad))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *images)
        return ImageBatch(stacked, mask, examples)

    def batches(self, layout: RowLayout) -> Callable[[int], tuple[Any, ImageBatch]]:
        """The function that makes a layout's batches for `run_batches`, from a batch's number."""

        def make(number: int) -> tuple[Any, ImageBatch]:
            batch = self.read(layout.indices(number))
            return batch.images, batch

        return make

    def read_one(self, index: int) -> tuple[Any, Any]:
        """Reads (example, pixels); what fails is None, logged and noted in `bad`.

        A label without a class is noted, too, but no number of bad images allows for it: what
        remained would be another set of classes, or each would have its neighbour's name.
        """
        example: Example | None = None
        try:
            example = read_example(self._source, index, ("image", "key"))
            self._check(example)
            return example, self._preprocess(example["image"])
        except (ValueError, OSError) as error:  # a SampleError of the data package is a ValueError
            if (
                isinstance(error, LabelError | ExampleError)
                or is_of_the_system(error)  # as storage that does not answer for a while
                or getattr(error, "reason", None) == "label"
            ):
                self.refuse(str(error))
                return example, None
            key = example["key"] if example else f"example {index}"
            with self._lock:
                self.bad[index] = f"{key}: {error}"
                self.reasons[index] = getattr(error, "reason", "unreadable")
            if len(self.bad) <= _WARNED:
                logging.warning("%s: cannot be used: %s: %s", self._where, key, error)
            if len(self.bad) == _WARNED:
                logging.warning("%s: further ones are counted and not named", self._where)
            return example, None

    def refuse(self, message: str) -> None:
        """Notes a fault of the dataset that `max_bad` does not allow for; `check` raises it."""
        with self._lock:
            self._refused = self._refused or f"{self._where}: {message}"

    def check(self, num_bad: int) -> None:
        """Raises what was refused, or if more examples failed than are tolerated; a collective."""
        self._judge(next(filter(None, gather(self._refused)), None), num_bad)

    def _judge(self, refused: str | None, num_bad: int) -> None:
        if refused:
            raise ValueError(refused)
        bad = self.bad
        if num_bad <= self._max_bad:
            return
        named = [bad[index] for index in sorted(bad)[:_NAMED]] or ["see the other processes"]
        named += ["..."] if len(bad) > _NAMED else []
        raise ValueError(
            f"{self._where}: {num_bad} image(s) or text(s) cannot be used, {self._max_bad} allowed "
            f"(max_bad): {'; '.join(named)}. A smaller set is another evaluation: repair or remove "
            "these examples, or allow so many by max_bad="
        )


class Embedded(NamedTuple):
    """Some examples of a source, one after the other.

    Attributes:
        rows: their indices.
        embeds: `[good, embed]`, float32, rows of length 1, of those that can be used.
        examples: these, as the source gives them.
        indices: `[good]`, their indices.
        bad: those that cannot be used, by reason.
    """

    rows: range
    embeds: np.ndarray
    examples: list[Example]
    indices: np.ndarray
    bad: Counter[str]


def embed_ranges(
    encode_image_fn: EncodeFn,
    variables: PyTree,
    reader: ImageReader,
    ranges: Iterable[range],
    layout: RowLayout,
) -> Iterator[Embedded]:
    """Embeds parts of a source on this process's devices, each image once, in order.

    Args:
        ranges: indices of the source, at most `layout.batch_size` in each.
        layout: of a mesh of this process alone; its batch size is that of every part, padded.

    Raises:
        ValueError: as `reader` does.
        FloatingPointError: embeddings that are not finite.
    """
    padding = np.arange(layout.batch_size)

    def make(rows: range) -> tuple[Any, tuple[range, ImageBatch]]:
        batch = reader.read(np.where(padding < len(rows), rows.start + padding, _PADDING))
        return batch.images, (rows, batch)

    run = embed_fn(encode_image_fn, layout.mesh)
    # The devices work on the next part while this one is looked at.
    before: list[tuple[jax.Array, tuple[range, ImageBatch]]] = []
    for found in run_batches(run, variables, layout, make, ranges):
        before.append(found)
        if len(before) > 1:
            yield _told(reader, *before.pop(0))
    for found in before:
        yield _told(reader, *found)


def _told(reader: ImageReader, embeds: jax.Array, of: tuple[range, ImageBatch]) -> Embedded:
    rows, batch = of
    good = np.flatnonzero(batch.mask)
    found = jax.device_get(embeds)[good]
    if not np.isfinite(found).all():
        raise FloatingPointError(
            f"embeddings of the examples {rows.start} to {rows.stop - 1} are not finite; look for "
            "NaN or infinite parameters in the checkpoint"
        )
    bad = Counter(reader.reasons[row] for row in rows if row in reader.reasons)
    return Embedded(rows, found, [batch.examples[i] for i in good], rows.start + good, bad)
