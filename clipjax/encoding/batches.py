"""Batches of an evaluation: which rows a process fills, and how they become embeddings.

Every evaluation cuts its items into batches of one size, the last padded and masked, so that a
dataset of any length compiles once and counts each item exactly once, on any number of devices and
processes.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.array_types import PyTree
from clipjax.layers.normalization import l2_normalise
from clipjax.models.images import normalise_images
from clipjax.partitioning import batch_sharding, num_batch_shards, place, replicated

__all__ = ["EncodeFns", "RowLayout", "embed_fn", "make_encode_fns", "place_params", "prefetched"]

# (params, uint8 images [b, h, w, 3] or int32 tokens [b, l]) -> embeddings [b, d]
EncodeFn = Callable[[PyTree, jax.Array], jax.Array]
Item = TypeVar("Item")
Made = TypeVar("Made")


class EncodeFns(NamedTuple):
    """The pure functions through which an evaluation sees a model.

    Attributes:
        image: (params, images uint8 `[batch, height, width, 3]`) -> `[batch, embed]`.
        text: (params, tokens int32 `[batch, length]`) -> `[batch, embed]`.
        logit_scale: params -> `[]` float32, the factor of the cosines (not its logarithm).
        logit_bias: params -> `[]` float32, what is added to them; None for a model without it.
    """

    image: EncodeFn
    text: EncodeFn
    logit_scale: Callable[[PyTree], jax.Array]
    logit_bias: Callable[[PyTree], jax.Array | None]


def make_encode_fns(model: Any, preprocess: dict[str, Any], *, dtype: str = "float32") -> EncodeFns:
    """Makes the encode functions of a model; pass the same ones to all evals: they compile once.

    Args:
        model: a CLIP module.
        preprocess: the spec's `preprocess`; its `mean` and `std` are applied on the device.
        dtype: of the pixels that enter the model.

    Returns:
        Functions of the model's variables: either its parameter tree, or, for a model that holds
        more than parameters, `{"params": ..., "batch_stats": ...}`.
    """
    mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])

    def variables(params: PyTree) -> PyTree:
        return params if "params" in params else {"params": params}

    def encode_image(params: PyTree, images: jax.Array) -> jax.Array:
        pixels = normalise_images(images, mean, std, jnp.dtype(dtype))
        return model.apply(variables(params), pixels, method="encode_image")

    def encode_text(params: PyTree, tokens: jax.Array) -> jax.Array:
        return model.apply(variables(params), tokens, method="encode_text")

    def logit_scale(params: PyTree) -> jax.Array:
        return jnp.exp(variables(params)["params"]["logit_scale"])

    def logit_bias(params: PyTree) -> jax.Array | None:
        return variables(params)["params"].get("logit_bias")

    return EncodeFns(encode_image, encode_text, logit_scale, logit_bias)


@functools.lru_cache(maxsize=16)
def embed_fn(encode_fn: EncodeFn, mesh: Mesh) -> Callable[[PyTree, jax.Array], jax.Array]:
    """Compiles an encode function: float32, of length 1, rows over the mesh's batch axes.

    Cached, so that evals that share an encode function and a batch size share one compilation.
    """

    def embed(params: PyTree, rows: jax.Array) -> jax.Array:
        return l2_normalise(encode_fn(params, rows).astype(jnp.float32))

    return jax.jit(embed, out_shardings=batch_sharding(mesh))


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """Cuts `num_rows` items into padded batches and lays their rows over a mesh.

    Attributes:
        mesh: the devices.
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
        """Rows of a global batch: no more than needed, divisible by the mesh's batch axes."""
        shards = num_batch_shards(self.mesh)
        wanted = min(self.max_batch, self.num_rows)
        return -(-wanted // shards) * shards

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

        def rows(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(self.batch_size)
            first = int(np.searchsorted(self.local_rows, start))
            return local[first : first + stop - start]

        # The training loop forbids implicit transfers, of which JAX takes this for one.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_callback(shape, batch_sharding(self.mesh), rows)


def place_params(params: PyTree, mesh: Mesh) -> PyTree:
    """Puts parameters that live elsewhere (host, one device) on the mesh, once and replicated.

    Those of a training state stay as they are sharded. In several processes each has all of them.
    """
    devices = set(mesh.devices.flat)

    def placed(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        return place(leaf, replicated(mesh))

    return jax.tree.map(placed, params)


def prefetched(
    make: Callable[[Item], Made], items: Iterable[Item], depth: int = 2
) -> Iterator[Made]:
    """Yields `make(item)` in order, made up to `depth` items ahead in a thread.

    Preparing the next batch overlaps with the device's work on this one.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eval_batches")
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
