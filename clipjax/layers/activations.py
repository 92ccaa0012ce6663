"""Activations by the name that a model spec carries."""

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


def activation(name: str) -> Callable[[jnp.ndarray], jnp.ndarray]:
    """Looks an activation up.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; allowed are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
