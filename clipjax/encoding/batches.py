"""Batches of an evaluation: which rows a process fills, and how they become embeddings.

Items are cut into batches of one size, the last padded and masked, so that a dataset of any length
compiles once and counts each item exactly once, on any number of devices and processes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax import faults
from clipjax.array_types import PyTree
from clipjax.encoding.compiled import CompiledFn
from clipjax.partitioning import batch_sharding, num_batch_shards, place, replicated
from clipjax.prefetching import prefetched
from clipjax.processes import signals

Beside = TypeVar("Beside")


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """Cuts `num_rows` items into padded batches and lays their rows over a mesh.

    Attributes:
        num_rows: number of items over all processes.
        max_batch: upper bound of the global batch, up to rounding to the batch axes' size.
    """

    mesh: Mesh
    num_rows: int
    max_batch: int

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise ValueError("there is nothing to evaluate: the dataset is empty")
        if self.max_batch < 1:
            raise ValueError(f"batch_size is {self.max_batch}; it has to be at least 1")

    @functools.cached_property
    def batch_size(self) -> int:
        """Rows of a global batch: divisible by the mesh's batch axes, and of few sizes.

        That of fewer rows than `max_batch` is rounded up to the axes' size times a power of two:
        another number of rows rarely compiles anew.
        """
        size = shards = num_batch_shards(self.mesh)
        most = -(-self.max_batch // shards) * shards
        while size < min(self.num_rows, most):
            size *= 2
        return min(size, most)

    @property
    def num_batches(self) -> int:
        """Number of batches, the padded one included."""
        return -(-self.num_rows // self.batch_size)

    @functools.cached_property
    def local_rows(self) -> np.ndarray:
        """Positions inside a global batch that live on this process's devices, ascending."""
        indices = batch_sharding(self.mesh).addressable_devices_indices_map((self.batch_size,))
        places = np.arange(self.batch_size)
        return np.unique(np.concatenate([places[index] for index in indices.values()]))

    def indices(self, batch: int) -> np.ndarray:
        """Items that this process provides for a batch; `num_rows` and above are padding."""
        return batch * self.batch_size + self.local_rows

    def to_device(self, local: PyTree) -> PyTree:
        """Makes the global `[batch, ...]` arrays whose local rows are given, in order."""
        return jax.tree.map(self._to_device, local)

    def _to_device(self, local: np.ndarray) -> jax.Array:
        """By callback rather than by concatenation: the rows of a process need not be adjacent, as
        the mesh may visit the hosts of a pod in any order.
        """
        shape = (self.batch_size, *local.shape[1:])

        def rows(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(self.batch_size)
            first = int(np.searchsorted(self.local_rows, start))
            return local[first : first + stop - start]

        # The training loop forbids implicit transfers, of which JAX takes this for one.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_callback(shape, batch_sharding(self.mesh), rows)


def put_on_mesh(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays that live elsewhere (host, one device) on the mesh, once and replicated.

    Those of a training state stay as they are sharded. In several processes each has all of them.
    """
    devices = set(mesh.devices.flat)

    def placed(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        return place(leaf, replicated(mesh))

    return jax.tree.map(placed, tree)


def run_batches(
    run: Callable[[PyTree, PyTree], jax.Array],
    variables: PyTree,
    layout: RowLayout,
    make: Callable[[Any], tuple[PyTree, Beside]],
    batches: Iterable[Any] | None = None,
) -> Iterator[tuple[jax.Array, Beside]]:
    """Runs a compiled function over all batches of a layout, in order.

    Batches are made in a thread, up to two ahead of the one that the devices work on. Texts go to
    the devices without the positions that a `CompiledFn` does not read.

    Args:
        run: (variables, rows on the mesh) -> results, one a row.
        make: number of a batch -> this process's rows of it, `[local rows, ...]`, and whatever
            belongs to them beside.
        batches: what `make` makes batches of, in place of the numbers of all of the layout.

    Yields:
        The results of a batch, on the mesh, and what was made beside its rows.

    Raises:
        StopRequestedError: the run was asked to stop.
    """
    batches = range(layout.num_batches) if batches is None else batches
    cut = run.cut if isinstance(run, CompiledFn) else lambda rows, mesh: rows
    for number, (rows, beside) in enumerate(prefetched(make, batches)):
        faults.point("eval.batch", number)
        signals.poll()
        yield run(variables, layout.to_device(cut(rows, layout.mesh))), beside
