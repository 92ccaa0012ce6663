"""StableAdamW: AdamW whose learning rate falls where its second moment lags (arXiv:2304.13013)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.optim.stacks import tensor_axes
from clipjax.trees import map_with_names


def clip_updates(
    chain: Sequence[optax.GradientTransformationExtraArgs], adam: int, *, b2: float, eps: float
) -> optax.GradientTransformationExtraArgs:
    """`optax.chain`, each tensor's update divided by max(1, RMS) (algorithm 2).

    RMS is the root of the mean of g^2 / max(v, eps^2), with the gradient g that Adam takes and its
    second moment v without bias. Each block of a stack is a tensor of its own. The state is that of
    `optax.chain`.

    Args:
        chain: transformations that take extra arguments.
        adam: the place of `optax.scale_by_adam` in it.
        b2: of Adam.
        eps: of Adam.
    """

    def init(params: Any) -> Any:
        return tuple(part.init(params) for part in chain)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        kept, grads = [], updates
        for place, part in enumerate(chain):
            grads = updates if place == adam else grads
            updates, new = part.update(updates, state[place], params, **extra)
            kept.append(new)
        moments = optax.tree.bias_correction(kept[adam].nu, b2, kept[adam].count)

        def clipped(name: str, update: jax.Array, grad: jax.Array, v: jax.Array) -> jax.Array:
            squares = jnp.square(grad.astype(jnp.float32)) / jnp.maximum(v, eps**2)
            axes = tensor_axes(name, update.ndim)
            rms = jnp.sqrt(jnp.mean(squares, axis=axes, keepdims=True))
            return (update / jnp.maximum(1.0, rms)).astype(update.dtype)

        return map_with_names(clipped, updates, grads, moments), tuple(kept)

    return optax.GradientTransformationExtraArgs(init, update)
