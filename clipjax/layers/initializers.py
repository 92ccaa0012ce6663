"""Initialisers of transformer blocks: the published ones, by name (facts of each in its function).

A fused qkv kernel is laid out [width, 3, heads, head_dim], so fans are given, not read from shapes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Initializer = Callable[..., Any]


@dataclass(frozen=True)
class BlockInit:
    """Initialisers of one transformer block."""

    qkv: Initializer
    out: Initializer
    fc: Initializer
    proj: Initializer
    fc_bias: Initializer
    proj_bias: Initializer


def parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    """Declares a float32 parameter of a module, its dimensions named for the sharding rules.

    Args:
        module: in its compact method.
        name: of the parameter.
        init: its initialiser.
        axes: logical axis of each dimension, or None.
        shape: of the parameter.

    Returns:
        Its value, on a device where the variables are NumPy's.
    """
    # flax types it as the box that holds the axes.
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return jnp.asarray(value)


def uniform(bound: float) -> Initializer:
    """Uniform on [-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def openai_text_init(width: int, mlp_dim: int, depth: int) -> BlockInit:
    """OpenAI's text blocks: normal, residual outputs scaled by depth (openai/CLIP model.py)."""
    residual = nn.initializers.normal(width**-0.5 * (2 * depth) ** -0.5)
    # The reference leaves the MLP's biases at torch's default of a linear layer.
    return BlockInit(
        qkv=nn.initializers.normal(width**-0.5),
        out=residual,
        fc=nn.initializers.normal((2 * width) ** -0.5),
        proj=residual,
        fc_bias=uniform(width**-0.5),
        proj_bias=uniform(mlp_dim**-0.5),
    )


def torch_init(width: int, mlp_dim: int, depth: int) -> BlockInit:
    """OpenAI's ViT blocks keep torch's defaults: Xavier qkv, U(+-1/sqrt(fan_in)) elsewhere."""
    del depth
    return BlockInit(
        qkv=uniform(math.sqrt(6 / (4 * width))),
        out=uniform(width**-0.5),
        fc=uniform(width**-0.5),
        proj=uniform(mlp_dim**-0.5),
        fc_bias=uniform(width**-0.5),
        proj_bias=uniform(mlp_dim**-0.5),
    )


def xavier_init(width: int, mlp_dim: int, depth: int) -> BlockInit:
    """big_vision's blocks: Xavier-uniform kernels, MLP biases N(0, 1e-6)."""
    del depth
    square = uniform(math.sqrt(6 / (2 * width)))
    rectangle = uniform(math.sqrt(6 / (width + mlp_dim)))
    bias = nn.initializers.normal(1e-6)
    return BlockInit(
        qkv=square, out=square, fc=rectangle, proj=rectangle, fc_bias=bias, proj_bias=bias
    )


def bert_init(width: int, mlp_dim: int, depth: int) -> BlockInit:
    """BERT's blocks: kernels N(0, 0.02), biases zero."""
    del width, mlp_dim, depth
    normal, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
    return BlockInit(qkv=normal, out=normal, fc=normal, proj=normal, fc_bias=zeros, proj_bias=zeros)


BLOCK_INITS: dict[str, Callable[[int, int, int], BlockInit]] = {
    "bert": bert_init,
    "openai_text": openai_text_init,
    "torch": torch_init,
    "xavier": xavier_init,
}
