"""Exact large batches on few chips: gradient caching (arXiv:2101.06983).

The contrastive loss couples all examples, so averaging the gradients of micro-batches is wrong.
Instead: (1) encode the micro-batches without keeping activations; (2) take the gradient of the loss
with respect to the embeddings, the scale and the bias once, over the whole batch; (3) encode each
micro-batch again and pull its embeddings' gradient back to the parameters. The cost is one more
forward pass; the memory is that of one micro-batch and the embeddings.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.partitioning.boxes import hint_axes

# encode(params, batch) -> (image_embeds [b, D], text_embeds [b, D])
EncodeFn = Callable[[Any, Any], tuple[jax.Array, jax.Array]]
# head(params, image_embeds, text_embeds) -> (loss, metrics); uses the scale and bias of params
HeadFn = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def split(batch: Any, num_micro: int) -> Any:
    """Cuts [batch, ...] to [num_micro, batch / num_micro, ...], example i to micro-batch i % n.

    The stride keeps every device's rows on that device: a contiguous cut would move them.
    """

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x.reshape(x.shape[0] // num_micro, num_micro, *x.shape[1:]), 0, 1)
        return hint_axes(x, (None, "batch", *[None] * (x.ndim - 2)))

    return jax.tree.map(cut, batch)


def join(x: jax.Array) -> jax.Array:
    """The inverse of `split` for one array."""
    x = jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
    return hint_axes(x, ("batch", *[None] * (x.ndim - 1)))


def _add(total: jax.Array, part: jax.Array) -> jax.Array:
    return total + part.astype(total.dtype)


def value_and_grad(
    encode: EncodeFn, head: HeadFn, params: Any, batch: Any, *, num_micro: int
) -> tuple[tuple[jax.Array, Any], Any]:
    """Loss, metrics and gradient of `head(params, *encode(params, batch))`.

    Args:
        encode: must draw its noise by example, not by place in the batch (clipjax.layers.dropout),
            so that both encodings of a micro-batch agree.
        head: the loss over all embeddings.
        params: the parameters, of any floating dtype.
        batch: a tree of [batch, ...] arrays.
        num_micro: micro-batches; 1 is the plain gradient.

    Returns:
        ((loss, metrics), gradient); with micro-batches the gradient is summed in float32.
    """
    if num_micro == 1:

        def whole(p: Any) -> tuple[jax.Array, Any]:
            return head(p, *encode(p, batch))

        return jax.value_and_grad(whole, has_aux=True)(params)

    micro_batches = split(batch, num_micro)
    images, texts = jax.lax.map(lambda micro: encode(params, micro), micro_batches)
    (loss, metrics), (gradient, d_images, d_texts) = jax.value_and_grad(
        head, argnums=(0, 1, 2), has_aux=True
    )(params, join(images), join(texts))

    def pull_back(total: Any, inputs: Any) -> tuple[Any, None]:
        micro, cotangents = inputs
        _, vjp = jax.vjp(lambda p: encode(p, micro), params)
        return jax.tree.map(_add, total, vjp(cotangents)[0]), None

    gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
    cotangents = split((d_images, d_texts), num_micro)
    gradient, _ = jax.lax.scan(pull_back, gradient, (micro_batches, cotangents))
    return (loss, metrics), gradient
