"""Classification by the nearest neighbours among images with labels, their votes weighted."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.array_types import PyTree
from clipjax.encoding.batches import RowLayout
from clipjax.evals.features import Features
from clipjax.evals.probe import TOP, Probe
from clipjax.evals.retrieval import Chunk, gather_rows, stack_chunks
from clipjax.partitioning import batch_sharding, replicated
from clipjax.ranges import Number, Rule, whole


@dataclasses.dataclass(kw_only=True)
class KNN(Probe):
    """Weighted vote of the k nearest: class c has sum of exp(s_j / temperature) over its j.

    s_j is the cosine of the j-th nearest training image. A class without a vote is no answer, also
    not among five. Of equal votes the lower class counts.

    Attributes:
        k: neighbours; with fewer training images all of them.
        temperature: of the weights.

    Reference: arXiv:1805.01978, section 3.4; k = 20 and 0.07 as in arXiv:2104.14294.
    """

    k: int = 20
    temperature: float = 0.07
    batch_size: int = 256
    max_bad: int = 0
    name: str = "knn"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "k": whole(),
        "temperature": Number(0, open_low=True),
        **Probe.ranges,
    }

    def _settings(self) -> dict[str, Any]:
        return {"k": self.k, "temperature": self.temperature}

    def run(self, params: PyTree) -> dict[str, float]:
        """Evaluates the model on every image, each counted once.

        Returns:
            "top1", "top5", "mean_per_class_recall" in [0, 1], "num_examples", "num_train",
            "num_classes".

        Raises:
            ValueError: more than `max_bad` images of a set do not decode, a label without a class,
                or a class without a picture to learn from.
            FloatingPointError: embeddings that are not finite.
        """
        learn, asked = self._both(params)
        candidates = stack_chunks(list(self._chunks(learn)), mesh=self.mesh)
        top = [
            gather_rows(
                [
                    _vote(
                        embeds,
                        *candidates,
                        k=self.k,
                        temperature=self.temperature,
                        num_classes=len(self._names),
                        mesh=self.mesh,
                    )
                ],
                mesh=self.mesh,
            )[0]
            for embeds, _ in self._chunks(asked)
        ]
        found = np.concatenate(jax.device_get(top))[: len(asked.labels)]
        return self._metrics(found, learn, asked)

    def _chunks(self, features: Features) -> "list[Chunk]":
        layout = RowLayout(self.mesh, len(features.labels), self.batch_size)
        chunks = []
        for number in range(layout.num_batches):
            indices = layout.indices(number)
            real = np.minimum(indices, layout.num_rows - 1)
            labels = np.where(indices < layout.num_rows, features.labels[real], -1)
            rows = (features.embeds[real], labels.astype(np.int32))
            chunks.append((layout.to_device(rows[0]), layout.to_device(rows[1])))
        return chunks


@functools.partial(jax.jit, static_argnames=("k", "temperature", "num_classes", "mesh"))
def _vote(
    queries: jax.Array,
    candidates: jax.Array,
    labels: jax.Array,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    mesh: Mesh,
) -> jax.Array:
    """Gives the classes with the most votes, `[queries, up to TOP]`, -1 where there is no vote.

    Queries stay where they lie; the candidates `[chunks, batch, embed]` come past chunk by chunk.
    """

    def merge(best: Any, chunk: Chunk) -> tuple[Any, None]:
        rows, of_rows = jax.lax.with_sharding_constraint(chunk, replicated(mesh))
        cosines = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
        cosines = jnp.where(of_rows >= 0, cosines, -jnp.inf)
        scores = jnp.concatenate([best[0], cosines], axis=1)
        voting = jnp.broadcast_to(of_rows, cosines.shape)
        voting = jnp.concatenate([best[1], voting], axis=1)
        scores, places = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(voting, places, axis=1)), None

    shape = (queries.shape[0], k)
    empty = (jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32))
    best = jax.lax.with_sharding_constraint(empty, batch_sharding(mesh))
    (scores, voted), _ = jax.lax.scan(merge, best, (candidates, labels))
    # Beside the nearest, whose weight is then 1: exp(1 / 0.01) is no float32.
    weights = jnp.where(voted >= 0, jnp.exp((scores - scores[:, :1]) / temperature), 0.0)
    rows = jnp.arange(queries.shape[0])[:, None]
    votes = jnp.zeros((queries.shape[0], num_classes)).at[rows, voted].add(weights)
    most, classes = jax.lax.top_k(votes, min(TOP, num_classes))
    return jnp.where(most > 0, classes, -1)
