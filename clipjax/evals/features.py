"""Embeddings of all images, or texts, of an evaluation, whole in the memory of every process."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from clipjax.array_types import PyTree
from clipjax.data.source import Example
from clipjax.encoding.batches import RowLayout, run_batches
from clipjax.encoding.compiled import embed_fn
from clipjax.encoding.reading import ImageReader
from clipjax.evals.evaluation import Evaluation
from clipjax.evals.retrieval import gather_rows


class Features(NamedTuple):
    """Of the images of a source, in its order.

    Attributes:
        embeds: `[images, embed]`, float32, rows of length 1.
        labels: `[images]`, int32; -1 where the source has none.
        good: `[images]`, bool; False where the image does not decode.
    """

    embeds: np.ndarray
    labels: np.ndarray
    good: np.ndarray


def embed_images(
    evaluation: Evaluation,
    params: PyTree,
    source: Any,
    *,
    check: Callable[[Example], object] = lambda example: None,
    see: Callable[[int, Example], None] = lambda index, example: None,
) -> Features:
    """Embeds every image of a source, each once, over all devices; a collective.

    Args:
        params: on the mesh, see `put_on_mesh`.
        check: of an example, see `ImageReader`.
        see: called with the index of each example that this process read, and the example.

    Raises:
        ValueError: more than `max_bad` images do not decode.
        FloatingPointError: embeddings that are not finite.
    """
    layout = RowLayout(evaluation.mesh, len(source), evaluation.batch_size)
    embed = embed_fn(evaluation.encode_image_fn, evaluation.mesh)
    reader = ImageReader(
        source,
        evaluation.preprocess,
        max_bad=evaluation.max_bad,
        where=evaluation.name,
        check=check,
    )
    lagging = _Lagging(evaluation.mesh)
    with reader:
        batches = run_batches(embed, params, layout, reader.batches(layout))
        for number, (embeds, batch) in enumerate(batches):
            pairs = list(zip(batch.mask, batch.examples, strict=True))
            for index, (good, example) in zip(layout.indices(number), pairs, strict=True):
                if good:
                    see(int(index), example)
            labels = [example.get("label", -1) if good else -1 for good, example in pairs]
            beside = np.stack([np.asarray(labels, np.int32), batch.mask.astype(np.int32)], axis=1)
            lagging.add([embeds, layout.to_device(beside)])
    found, facts = (part[: len(source)] for part in lagging.all())
    features = Features(found, facts[:, 0], facts[:, 1] > 0)
    # Counted over all processes, so that all of them come to one verdict.
    reader.check(int(np.sum(~features.good)))
    if not features.good.any():
        raise ValueError(f"{evaluation.name}: none of the {len(source)} images decodes")
    _check_finite(evaluation, features.embeds[features.good], "images")
    return features


def embed_texts(evaluation: Evaluation, params: PyTree, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts, which all processes know, over all devices; a collective.

    Returns:
        `[texts, embed]`, float32, rows of length 1.

    Raises:
        FloatingPointError: embeddings that are not finite.
    """
    layout = RowLayout(evaluation.mesh, len(texts), evaluation.batch_size)
    embed = embed_fn(evaluation.encode_text_fn, evaluation.mesh)

    def rows(number: int) -> tuple[np.ndarray, None]:
        real = np.minimum(layout.indices(number), layout.num_rows - 1)
        return np.asarray(evaluation.tokenizer([texts[row] for row in real]), np.int32), None

    lagging = _Lagging(evaluation.mesh)
    for embeds, _ in run_batches(embed, params, layout, rows):
        lagging.add([embeds])
    (found,) = lagging.all()
    found = found[: len(texts)]
    _check_finite(evaluation, found, "texts")
    return found


class _Lagging:
    """Brings sharded rows to all hosts, one batch behind, so that the devices do not wait."""

    def __init__(self, mesh: jax.sharding.Mesh) -> None:
        self._mesh = mesh
        self._pending: list[jax.Array] | None = None
        self._found: list[list[np.ndarray]] = []

    def add(self, arrays: list[jax.Array] | None) -> None:
        """Takes the arrays of a batch, `[batch, ...]`."""
        arrays = arrays and gather_rows(arrays, mesh=self._mesh)
        if self._pending is not None:
            self._found.append(jax.device_get(self._pending))
        self._pending = arrays

    def all(self) -> list[np.ndarray]:
        """The arrays of all batches, one behind the other."""
        self.add(None)
        return [np.concatenate(parts) for parts in zip(*self._found, strict=True)]


def _check_finite(evaluation: Evaluation, embeds: np.ndarray, what: str) -> None:
    bad = int(np.sum(~np.isfinite(embeds).all(axis=1)))
    if bad:
        raise FloatingPointError(
            f"{evaluation.name}: the embeddings of {bad} of {len(embeds)} {what} are not finite; "
            "look for NaN or infinite parameters in the checkpoint"
        )
