"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024; arXiv:2502.16982)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clipjax.optim.stacks import is_stacked
from clipjax.trees import map_with_names

# Of a quintic that takes singular values in (0, 1] to about [0.7, 1.2] within five iterations.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# The kernels that are matrices: dimensions of one layer's, and the axes of input and output.
_MATRICES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "kernel": (2, (0,), (1,)),
    "q_kernel": (3, (0,), (1, 2)),
    "kv_kernel": (4, (0,), (2, 3)),  # k and v are a matrix each, and so
    "qkv_kernel": (4, (0,), (2, 3)),  # are q, k and v
    "out_kernel": (3, (0, 1), (2,)),
}


class MuonState(NamedTuple):
    """The first moment of each matrix."""

    mu: Any


def matrix_axes(name: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes of the input and of the output of a kernel; None if it is no matrix.

    All other axes, that of the layers and that of q, k and v, number matrices. Embeddings and the
    kernels of convolutions, patches included, are none.
    """
    first = int(is_stacked(name))
    own, inputs, outputs = _MATRICES.get(name.rpartition("/")[2], (-1, (), ()))
    if ndim - first != own:
        return None
    return tuple(axis + first for axis in inputs), tuple(axis + first for axis in outputs)


def scale_by_muon(
    *, b1: float, b2: float, eps: float, mu_dtype: Any, momentum: float, rms: float | None
) -> optax.GradientTransformation:
    """Nesterov's momentum, orthogonal, for kernels that are matrices; Adam for the rest.

    Args:
        b1, b2, eps: of Adam.
        mu_dtype: of the momentum and of Adam's first moment.
        momentum: of the matrices.
        rms: of a matrix's update, as AdamW's is about 0.2, so that one learning rate serves both:
            times `sqrt(max(inputs, outputs))` (arXiv:2502.16982); None scales by
            `sqrt(max(1, outputs / inputs))`, Jordan's own.
    """

    def label(name: str, param: Any) -> str:
        return "adam" if matrix_axes(name, param.ndim) is None else "muon"

    return optax.partition(
        {
            "muon": _orthogonal_momentum(momentum, rms, mu_dtype),
            "adam": optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype),
        },
        lambda params: map_with_names(label, params),
    )


def _orthogonal_momentum(
    momentum: float, rms: float | None, mu_dtype: Any
) -> optax.GradientTransformation:
    def init(params: Any) -> MuonState:
        return MuonState(optax.tree.zeros_like(params, dtype=mu_dtype))

    def update(updates: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, momentum, 1)
        ahead = optax.tree.update_moment(updates, mu, momentum, 1)  # Nesterov's

        def direction(name: str, x: jax.Array, like: jax.Array) -> jax.Array:
            inputs, outputs = matrix_axes(name, x.ndim) or ((), ())
            fan_in = math.prod(x.shape[axis] for axis in inputs)
            fan_out = math.prod(x.shape[axis] for axis in outputs)
            scale = math.sqrt(max(1, fan_out / fan_in))
            if rms is not None:
                scale = rms * math.sqrt(max(fan_in, fan_out))
            return (scale * orthogonal(x, inputs, outputs)).astype(like.dtype)

        return map_with_names(direction, ahead, updates), MuonState(optax.tree.cast(mu, mu_dtype))

    return optax.GradientTransformation(init, update)


def orthogonal(x: jax.Array, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> jax.Array:
    """The orthogonal factor of each matrix, roughly: its singular values become 0.7 to 1.2.

    Args:
        x: the matrices; axes that are neither inputs nor outputs number them.
        inputs, outputs: the axes whose products are the two sides.
    """
    numbers = tuple(axis for axis in range(x.ndim) if axis not in inputs + outputs)
    order = numbers + inputs + outputs
    shape = [x.shape[axis] for axis in order]
    fan_in = math.prod(x.shape[axis] for axis in inputs)
    matrices = x.transpose(order).reshape(*shape[: len(numbers)], fan_in, -1)
    with jax.named_scope("optimizer"):  # `clipjax plan` counts its FLOPs by this name
        matrices = _newton_schulz(matrices)
    return matrices.reshape(shape).transpose([order.index(axis) for axis in range(x.ndim)])


def _newton_schulz(x: jax.Array) -> jax.Array:
    a, b, c = _COEFFICIENTS
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
