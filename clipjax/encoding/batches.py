"""Batches of an evaluation: which rows a process fills, and how they become embeddings.

Items are cut into batches of one size, the last padded and masked, so that a dataset of any length
compiles once and counts each item exactly once, on any number of devices and processes.
"""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax import faults
from clipjax.array_types import PyTree
from clipjax.compiler_flags import encoding_flags
from clipjax.layers.attention import attention_on
from clipjax.layers.execution import Execution
from clipjax.layers.normalization import l2_normalise
from clipjax.models.images import normalise_images
from clipjax.partitioning import (
    LOGICAL_AXIS_RULES,
    batch_sharding,
    num_batch_shards,
    place,
    replicated,
)
from clipjax.partitioning.boxes import rules_in_force, under_rules
from clipjax.platforms import platform_of
from clipjax.prefetching import prefetched
from clipjax.processes import signals
from clipjax.processes.distributed import gather

# (variables, uint8 images [b, h, w, 3] or int32 tokens [b, l]) -> embeddings [b, d]
EncodeFn = Callable[[PyTree, jax.Array], jax.Array]
Beside = TypeVar("Beside")

# Tokens that a batch of texts is cut to. Each is a compilation, so there are few of them.
TEXT_LENGTHS = (16, 24, 32, 48)

RULES = LOGICAL_AXIS_RULES["replicated"].params  # variables whole, rows over the batch's axes


class EncodeFns(NamedTuple):
    """The pure functions through which an evaluation sees a model.

    Attributes:
        image: (variables, images uint8 `[batch, height, width, 3]`) -> `[batch, embed]`.
        text: (variables, tokens int32 `[batch, length]`) -> `[batch, embed]`.
        logit_scale: variables -> `[]` float32, the factor of the cosines (not its logarithm).
        logit_bias: variables -> `[]` float32, what is added to them; None for a model without it.
    """

    image: EncodeFn
    text: EncodeFn
    logit_scale: Callable[[PyTree], jax.Array]
    logit_bias: Callable[[PyTree], jax.Array | None]


def make_encode_fns(
    model: Any, preprocess: dict[str, Any], *, dtype: str = "float32", platform: str = "cpu"
) -> EncodeFns:
    """Makes the encode functions of a model; pass the same ones to all evals: they compile once.

    Args:
        dtype: of the computation, that the model was built with.
        platform: of the devices that it runs on, by `clipjax.platforms.platform_of`.

    Returns:
        Functions of the model's variables, `{"params": ...}` and what else it holds.
    """
    model = _for_embeddings(model, float32_products=platform == "cpu" and dtype == "bfloat16")

    def logit_scale(variables: PyTree) -> jax.Array:
        return jnp.exp(variables["params"]["logit_scale"])

    def logit_bias(variables: PyTree) -> jax.Array | None:
        return variables["params"].get("logit_bias")

    return EncodeFns(
        EncodeImage(model, preprocess, dtype), EncodeText(model, dtype), logit_scale, logit_bias
    )


def _for_embeddings(model: Any, *, float32_products: bool) -> Any:
    """The same model: the last block of its image tower computes what is pooled alone, and products
    of both towers are as asked."""
    return _with_execution(
        model,
        lambda tower: {
            "pooled_only": getattr(tower, "pools_first_token", False),
            "float32_products": float32_products,
        },
    )


def _on_devices(model: Any, mesh: Mesh, dtype: str) -> Any:
    """The same model, with the attention kernels that a mesh's GPUs or TPUs have.

    In bfloat16: who asks for float32 wants its numbers, which the plain path gives. The towers of a
    run have its own kernels, in either.
    """
    device, platform = mesh.devices.flat[0], platform_of(mesh)
    if platform == "cpu" or dtype != "bfloat16":
        return model

    def fields_of(tower: Any) -> dict[str, Any]:
        if tower.execution.platform != "cpu":
            return {}
        attention = attention_on(device, platform, tower.execution.attention)
        return {"platform": platform, "attention": attention}

    return _with_execution(model, fields_of)


def _with_execution(model: Any, fields_of: Callable[[Any], dict[str, Any]]) -> Any:
    """The same model, with other fields of its towers' executions; none of towers of one's own."""
    towers = {}
    for name in ("image_encoder", "text_encoder"):
        tower = getattr(model, name)
        if not isinstance(getattr(tower, "execution", None), Execution):
            continue
        execution = dataclasses.replace(tower.execution, **fields_of(tower))
        if execution != tower.execution:
            towers[name] = tower.clone(execution=execution)
    return model.clone(**towers) if towers else model


class _EncodeTower:
    """What one tower of a model computes, as an EncodeFn."""

    def __init__(self, model: Any, dtype: str = "float32") -> None:
        self._model, self.dtype = model, dtype

    def on(self, mesh: Mesh) -> Self:
        """The same function, for programs under the mesh and its sharding rules alone."""
        own = copy.copy(self)
        own._model = _on_devices(self._model, mesh, self.dtype)
        return own


class EncodeImage(_EncodeTower):
    """A model's image tower and projection as an EncodeFn.

    Args:
        model: `clipjax.models.CLIP`.
        preprocess: of its spec; mean and std are read.
        dtype: of the computation.
    """

    def __init__(self, model: Any, preprocess: dict[str, Any], dtype: str = "float32") -> None:
        super().__init__(model, dtype)
        self._mean, self._std = tuple(preprocess["mean"]), tuple(preprocess["std"])

    def __call__(self, variables: PyTree, images: jax.Array) -> jax.Array:
        """Embeds images uint8 `[batch, height, width, 3]`."""
        pixels = normalise_images(images, self._mean, self._std, jnp.dtype(self.dtype))
        return self._model.apply(variables, pixels, method="encode_image")


class EncodeText(_EncodeTower):
    """A model's text tower and projection as an EncodeFn, for texts cut behind their ends, too.

    Args:
        model: `clipjax.models.CLIP`.
        dtype: of the computation.
    """

    def __call__(self, variables: PyTree, tokens: jax.Array) -> jax.Array:
        """Embeds ids int32 `[batch, length]`, of the model's length or as `cut` leaves them."""
        model, length = self._model, tokens.shape[1]
        tower = model.text_encoder
        if _trims(tower) and length < tower.context_length:
            model = model.for_shorter_texts(length)
        return model.apply(variables, tokens, method="encode_text")

    def cut(self, tokens: np.ndarray, mesh: Mesh) -> np.ndarray:
        """Leaves out the positions behind the end of every text, if no number depends on them.

        What remains has one of TEXT_LENGTHS, or all tokens where that spares less than a quarter.
        A collective of the mesh's processes, which agree on the length.

        Args:
            tokens: int32 `[rows, length]`, this process's rows of a batch over the mesh.
        """
        tower, length = self._model.text_encoder, tokens.shape[1]
        lengths = [each for each in TEXT_LENGTHS if 4 * each <= 3 * length]
        if not lengths or not _trims(tower):
            return tokens
        read = 1 + int(tower.ends(tokens).max(initial=0))
        if mesh.is_multi_process:
            read = max(gather(read))
        return tokens[:, : next((each for each in lengths if each >= read), length)]


def compute_dtype(encode_fn: EncodeFn) -> str:
    """The dtype that an encode function computes in; float32 of one's own that does not say."""
    return getattr(encode_fn, "dtype", "float32")


def _trims(tower: Any) -> bool:
    return getattr(tower, "trims_behind_end_of_text", False)


class EmbedFn:
    """An encode function, compiled: float32, of length 1, rows over the mesh's batch axes.

    The towers of `make_encode_fns` take their platform's attention kernel, see `on`.
    """

    def __init__(self, encode_fn: EncodeFn, mesh: Mesh) -> None:
        def embed(encode: EncodeFn, variables: PyTree, rows: jax.Array) -> jax.Array:
            return l2_normalise(encode(variables, rows).astype(jnp.float32))

        own = encode_fn.on(mesh) if isinstance(encode_fn, _EncodeTower) else encode_fn
        dtype = compute_dtype(encode_fn)
        flags = encoding_flags(platform_of(mesh), mesh.devices.size, dtype=dtype)
        compiled = functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
        self._inside = compiled(functools.partial(embed, encode_fn))
        self._run = compiled(functools.partial(embed, own), compiler_options=flags or None)
        self._encode_fn, self._mesh = encode_fn, mesh

    def __call__(self, variables: PyTree, rows: PyTree) -> jax.Array:
        """Embeds rows on the mesh: `[batch, embed]`."""
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((variables, rows))):
            return self._inside(variables, rows)  # JAX takes options of the outermost program alone
        try:
            scope = self._scope()
        except ValueError:  # JAX sets no mesh while it traces, be it something else
            return self._inside(variables, rows)
        with scope:
            return self._run(variables, rows)

    def trace(self, variables: PyTree, rows: PyTree) -> jax.stages.Traced:
        """The program, not compiled; shapes with shardings are enough."""
        with self._scope():
            return self._run.trace(variables, rows)

    def _scope(self) -> contextlib.ExitStack:
        """The mesh and rules that say where a kernel's rows lie; those of a run stay in force."""
        own = jax.sharding.get_abstract_mesh() == self._mesh.abstract_mesh
        rules = (rules_in_force() if own else None) or RULES
        stack = contextlib.ExitStack()
        stack.enter_context(jax.set_mesh(self._mesh))
        stack.enter_context(under_rules(rules))
        return stack

    def cut(self, rows: PyTree, mesh: Mesh) -> PyTree:
        """Leaves out what the encode function does not read of rows on the host."""
        return self._encode_fn.cut(rows, mesh) if isinstance(self._encode_fn, EncodeText) else rows


@functools.lru_cache(maxsize=16)
def embed_fn(encode_fn: EncodeFn, mesh: Mesh) -> EmbedFn:
    """Compiles an encode function.

    Cached, so that evals that share an encode function and a batch size share one compilation.
    """
    return EmbedFn(encode_fn, mesh)


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
    the devices without the positions that an `EmbedFn` does not read.

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
    cut = run.cut if isinstance(run, EmbedFn) else lambda rows, mesh: rows
    for number, (rows, beside) in enumerate(prefetched(make, batches)):
        faults.point("eval.batch", number)
        signals.poll()
        yield run(variables, layout.to_device(cut(rows, layout.mesh))), beside
