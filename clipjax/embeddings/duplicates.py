"""Pictures that show the same: pairs above a cosine, and the groups that they connect."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from clipjax.embeddings.index import Index, on_device

ROWS = 4096  # of a block: 64 MB of cosines
_EDGES = 1 << 20  # that are held before they become groups


class Duplicates(NamedTuple):
    """What is near what.

    Attributes:
        labels: `[embeddings]`, int32: those of one number are one group.
        pairs: how many are at the threshold or above.
        edges: `[bins + 1]`, of the histogram.
        counts: `[bins]`, int64: pairs whose cosine is in a bin.
    """

    labels: np.ndarray
    pairs: int
    edges: np.ndarray
    counts: np.ndarray

    def groups(self) -> list[np.ndarray]:
        """The places of each group of two or more, the largest group first."""
        order = np.argsort(self.labels, kind="stable")
        starts = np.flatnonzero(np.diff(self.labels[order], prepend=-1))
        found = [group for group in np.split(order, starts[1:]) if len(group) > 1]
        return sorted(found, key=lambda group: (-len(group), group[0]))


def bin_edges(threshold: float) -> np.ndarray:
    """Edges of the histogram: twelve bins as wide as the four between the threshold and 1."""
    step = (1 - threshold) / 4
    return np.maximum(threshold + step * np.arange(-8, 5), -1.0)


def find_duplicates(index: Index, threshold: float, *, rows: int = ROWS) -> Duplicates:
    """Compares every embedding with every other one, block by block on a device.

    Args:
        index: of n embeddings.
        threshold: a cosine; pairs at it or above are the same.
        rows: of a block.

    Returns:
        The groups that the pairs connect, and how many pairs have which cosine.
    """
    edges = bin_edges(threshold)
    counts = np.zeros(len(edges) - 1, np.int64)
    labels = _Labels(len(index))
    pairs = 0
    limits = jnp.asarray([threshold, *edges[:-1]], jnp.float32)
    for left in index.blocks(rows):
        embeds = on_device(left)  # once for all that it is compared with
        for right in index.blocks(rows, start=left.first):
            above, bits = jax.device_get(
                _compare(
                    *(embeds, on_device(right), limits),
                    *(left.first, left.filled, right.first, right.filled),
                )
            )
            pairs += int(above[0])
            counts -= np.diff(above[1:].astype(np.int64), append=0)
            if above[0]:
                found = np.unpackbits(bits, axis=1, count=rows).nonzero()
                labels.connect(left.first + found[0], right.first + found[1])
    return Duplicates(labels.told(), pairs, edges, counts)


@jax.jit
def _compare(
    left: jax.Array,
    right: jax.Array,
    limits: jax.Array,
    first: jax.Array,
    count: jax.Array,
    right_first: jax.Array,
    right_count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Counts the pairs at each limit and above, and gives a bit for each at the first."""
    cosines = jnp.matmul(
        left.astype(jnp.float32), right.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
    )
    row, column = jnp.arange(len(left))[:, None], jnp.arange(len(right))
    real = (row < count) & (column < right_count) & (first + row < right_first + column)
    cosines = jnp.where(real, cosines, -2)
    above = jax.lax.map(lambda limit: jnp.sum(cosines >= limit), limits)
    return above, jnp.packbits(cosines >= limits[0], axis=1)


class _Labels:
    """Groups of n things, which edges connect little by little."""

    def __init__(self, count: int) -> None:
        self._labels = np.arange(count, dtype=np.int32)
        self._edges: list[np.ndarray] = []

    def connect(self, left: np.ndarray, right: np.ndarray) -> None:
        """Takes pairs of numbers that belong together."""
        self._edges.append(np.stack([left, right]))
        if sum(part.shape[1] for part in self._edges) > _EDGES:
            self._merge()

    def told(self) -> np.ndarray:
        """The group of each, `[count]`."""
        self._merge()
        return self._labels

    def _merge(self) -> None:
        if self._edges:
            left, right = self._labels[np.concatenate(self._edges, axis=1)]
            size = len(self._labels)
            graph = coo_array((np.ones(len(left), bool), (left, right)), (size, size))
            self._labels = connected_components(graph, directed=False)[1][self._labels]
            self._edges = []


def largest(group: np.ndarray, areas: np.ndarray) -> int:
    """The place of a group's picture of the most pixels; of equal ones the first."""
    return int(group[np.argmax(areas[group])])
