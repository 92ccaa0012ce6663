"""Activations by the name that a model spec carries."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Float


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP (arXiv:2103.00020)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * Phi(x)` with the exact error function (arXiv:1606.08415); OpenCLIP's towers."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation of GELU (arXiv:1606.08415); big_vision's towers."""
    return jax.nn.gelu(x, approximate=True)


def swish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * sigmoid(x)` (arXiv:1710.05941), the activation of EfficientNet."""
    return jax.nn.silu(x)


ACTIVATIONS: dict[str, Callable[[jnp.ndarray], jnp.ndarray]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "swish": swish,
}


def activation(name: str, *, lean: bool = False) -> Callable[[jnp.ndarray], jnp.ndarray]:
    """Looks an activation up.

    Args:
        name: of ACTIVATIONS.
        lean: leaves the backward pass its input alone, instead of what autodiff keeps of it.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; allowed are {', '.join(ACTIVATIONS)}")
    return _keeping_input(name) if lean else ACTIVATIONS[name]


@functools.cache
def _keeping_input(name: str) -> Callable[[jnp.ndarray], jnp.ndarray]:
    function = ACTIVATIONS[name]
    kept = jax.custom_vjp(function)
    kept.defvjp(lambda x: (function(x), x), lambda x, g: jax.vjp(function, x)[1](g))
    return kept
