"""A tower's tokens: the last ones, or those after any of its blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.array_types import Patches, PyTree
from clipjax.encoding.encode_fns import EncodeTower
from clipjax.layers.normalization import LayerNorm
from clipjax.models.images import normalise_images

_FINAL_NORMS = {"image": "ln_post", "text": "ln_final"}


def count_layers(model: Any, tower: str, variables: PyTree, row: np.ndarray | Patches) -> int:
    """Counts the layers whose output a tower can give: blocks, or stages of a ResNet."""

    def hidden(variables: PyTree, rows: Any) -> Any:
        return _features(model, tower, variables, rows, keep_hidden=True).hidden

    found = jax.eval_shape(hidden, variables, jax.tree.map(lambda x: x[None], row))
    if found is None:
        raise ValueError(f"this {tower} encoder keeps no hidden layers; use layer=None")
    return len(found) if isinstance(found, tuple) else found.shape[0]


def layer_number(layer: int, num_layers: int, tower: str) -> int:
    """Turns `layer`, which may count from the end, to 1, 2, ... `num_layers`."""
    is_whole = isinstance(layer, int | np.integer)
    number = layer + 1 + num_layers if is_whole and layer < 0 else layer
    if not is_whole or not 1 <= number <= num_layers:
        raise ValueError(
            f"layer = {layer!r}: this {tower} tower has the layers 1 to {num_layers} "
            f"(or -{num_layers} to -1, counted from the last)"
        )
    return number


class EncodeTokens(EncodeTower):
    """The function (variables, rows) -> tokens `[batch, positions, width]`, float32.

    Args:
        model: `clipjax.models.CLIP`.
        tower: `image` or `text`.
        number: of the layer, from 1; None for the tower's last tokens.
        final_norm: apply the tower's final layer norm to the hidden layer.
        preprocess: of the model's spec; mean and std are read.
        dtype: of the computation.
    """

    def __init__(
        self,
        model: Any,
        tower: str,
        number: int | None,
        *,
        final_norm: bool,
        preprocess: dict[str, Any],
        dtype: str,
    ) -> None:
        super().__init__(model, dtype)
        self._tower, self._number, self._final_norm = tower, number, final_norm
        self._mean, self._std = tuple(preprocess["mean"]), tuple(preprocess["std"])

    def __call__(self, variables: PyTree, rows: jax.Array | Patches) -> jax.Array:
        """Computes the tokens of images uint8 or Patches, or of ids int32 `[batch, length]`."""
        model, tower, number = self._model, self._tower, self._number
        if tower == "image":
            rows = normalise_images(rows, self._mean, self._std, jnp.dtype(self.dtype))
        if number is None:
            found = _features(model, tower, variables, rows, keep_hidden=False).tokens
            return _without_padding(found, rows)
        found = _features(model, tower, variables, rows, keep_hidden=number).hidden
        if isinstance(found, tuple):
            grid = found[number - 1]
            found = grid.reshape(grid.shape[0], -1, grid.shape[-1])
        if self._final_norm:
            found = _norm(model, tower, variables, found)
        return _without_padding(found, rows)


def check_final_norm(tower: str, number: int | None, variables: PyTree) -> None:
    """Raises ValueError if there is no layer to normalise, or no final norm in the tower."""
    if number is None:
        raise ValueError("final_norm goes with a layer: layer=-1 is the last block's output")
    if _FINAL_NORMS[tower] not in variables["params"][f"{tower}_encoder"]:
        raise ValueError(f"final_norm: this {tower} tower has no final layer norm; leave it False")


def _without_padding(tokens: jax.Array, rows: jax.Array | Patches) -> jax.Array:
    tokens = tokens.astype(jnp.float32)
    if not isinstance(rows, Patches):
        return tokens
    inside = jnp.arange(tokens.shape[1]) < rows.grid.prod(axis=1, keepdims=True)
    return jnp.where(inside[:, :, None], tokens, 0)


def _features(model: Any, tower: str, variables: PyTree, rows: Any, **options: Any) -> Any:
    return model.apply(variables, rows, method=f"{tower}_features", **options)


def _norm(model: Any, tower: str, variables: PyTree, tokens: jax.Array) -> jax.Array:
    encoder = model.image_encoder if tower == "image" else model.text_encoder
    weights = variables["params"][f"{tower}_encoder"][_FINAL_NORMS[tower]]
    normal: Any = LayerNorm(encoder.layer_norm_eps).apply({"params": weights}, tokens)
    return normal
