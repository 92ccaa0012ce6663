"""Scanned stacks: a leaf of `blocks` holds one tensor a layer, along its first axis."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_STACKED = re.compile(r"(^|/)blocks/")


def is_stacked(name: str) -> bool:
    """Whether a parameter of this name holds all layers of a stack."""
    return _STACKED.search(name) is not None


def tensor_axes(name: str, ndim: int) -> tuple[int, ...]:
    """The axes of one layer's tensor; all of them where the layers are apart."""
    return tuple(range(int(is_stacked(name)), ndim))


def each_layer(name: str, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    """A function of one layer's tensors, over all layers that a parameter of this name holds."""
    return jax.vmap(function, in_axes=in_axes) if is_stacked(name) else function


def layer_norm_of(name: str, x: jax.Array) -> jax.Array:
    """The L2 norm of each layer's tensor, `[layers, 1, ...]`; `[1, ...]` where it is one tensor."""
    squares = jnp.square(x.astype(jnp.float32))
    return jnp.sqrt(jnp.sum(squares, axis=tensor_axes(name, x.ndim), keepdims=True))
