"""What the towers of a model compute, as pure functions of its variables."""

import abc
import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.array_types import PyTree
from clipjax.layers.attention import attention_on
from clipjax.layers.execution import Execution
from clipjax.models.images import normalise_images
from clipjax.platforms import platform_of
from clipjax.processes.distributed import gather

# (variables, uint8 images [b, h, w, 3] or int32 tokens [b, l]) -> embeddings [b, d]
EncodeFn = Callable[[PyTree, jax.Array], jax.Array]

# Tokens that a batch of texts is cut to. Each is a compilation, so there are few of them.
TEXT_LENGTHS = (16, 24, 32, 48)


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
    model = _pooled_only(with_products(model, dtype=dtype, platform=platform))

    def logit_scale(variables: PyTree) -> jax.Array:
        return jnp.exp(variables["params"]["logit_scale"])

    def logit_bias(variables: PyTree) -> jax.Array | None:
        return variables["params"].get("logit_bias")

    return EncodeFns(
        EncodeImage(model, preprocess, dtype), EncodeText(model, dtype), logit_scale, logit_bias
    )


def with_products(model: Any, *, dtype: str, platform: str) -> Any:
    """The same model, with the products of matrices that a platform is fast at."""
    float32 = platform == "cpu" and dtype == "bfloat16"
    return _with_execution(model, lambda tower: {"float32_products": float32})


def _pooled_only(model: Any) -> Any:
    """The same model, the last blocks of whose towers compute what is pooled alone."""
    return _with_execution(model, lambda tower: {"pooled_only": True})


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


class EncodeTower(abc.ABC):
    """A function of one tower of a model: (variables, rows) -> one result a row."""

    def __init__(self, model: Any, dtype: str = "float32") -> None:
        self._model, self.dtype = model, dtype

    @abc.abstractmethod
    def __call__(self, variables: PyTree, rows: Any) -> jax.Array:
        """Computes the results of `[batch, ...]` rows."""

    def on(self, mesh: Mesh) -> Self:
        """The same function, for programs under the mesh and its sharding rules alone."""
        own = copy.copy(self)
        own._model = _on_devices(self._model, mesh, self.dtype)
        return own

    def cut(self, rows: PyTree, mesh: Mesh) -> PyTree:
        """Leaves out what the function does not read of this process's rows, on the host."""
        return rows


class EncodeImage(EncodeTower):
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


class EncodeText(EncodeTower):
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
