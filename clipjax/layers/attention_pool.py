"""Attention whose queries are given, and the pooling heads made of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Array, Float
from clipjax.layers.attention import attend
from clipjax.layers.initializers import Initializer, parameter
from clipjax.layers.normalization import LayerNorm
from clipjax.layers.transformer import BlockConfig, Mlp, Valid


class CrossAttention(nn.Module):
    """Multi-head attention of queries over tokens, keys and values in one kernel.

    Attributes:
        num_heads: heads; the head dimension is width / num_heads.
        output_dim: width of the result.
        kernel_init: of the four kernels, each seen as a square matrix of the width.
        bias_init: of the four biases.
        dtype: of the computation.
    """

    num_heads: int
    output_dim: int
    kernel_init: Initializer
    bias_init: Initializer
    dtype: Any

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch queries width"],
        tokens: Float[Array, "batch length width"],
        valid: Valid = None,
    ) -> Float[Array, "batch queries output"]:
        """Attends to every token or to the `valid` ones, see `clipjax.layers.attention.attend`."""
        width = tokens.shape[-1]
        heads, head_dim = self.num_heads, width // self.num_heads
        axes = ("heads", "head_dim")
        kernel = self._weight("q_kernel", ("embed", *axes), (width, heads, head_dim))
        query = jnp.einsum("bqw,whd->bqhd", queries, kernel)
        query += self._weight("q_bias", axes, (heads, head_dim))
        kernel = self._weight("kv_kernel", ("embed", "kv", *axes), (width, 2, heads, head_dim))
        key_value = jnp.einsum("blw,wchd->blchd", tokens, kernel)
        key_value += self._weight("kv_bias", ("kv", *axes), (2, heads, head_dim))
        mixed = attend(key_value, valid, query=query)
        kernel = self._weight("out_kernel", (*axes, "embed"), (heads, head_dim, self.output_dim))
        out = jnp.einsum("bqhd,hdw->bqw", mixed, kernel)
        return out + self._weight("out_bias", ("embed",), (self.output_dim,))

    def _weight(self, name: str, axes: tuple[str, ...], shape: tuple[int, ...]) -> jax.Array:
        init = self.kernel_init if name.endswith("kernel") else self.bias_init
        return parameter(self, name, init, axes, shape).astype(self.dtype)


class MapHead(nn.Module):
    """Multi-head attention pooling: a learned probe asks all tokens, then an MLP (SigLIP).

    `y = attention(probe, tokens)`, result `y + mlp(norm(y))`. Reference: arXiv:2106.04560.

    Attributes:
        config: of the tower's blocks; big_vision's initialisers are used whatever it names.
    """

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch length width"],
        valid: Valid = None,
    ) -> Float[Array, "batch width"]:
        """Pools the tokens, or the `valid` ones: their number from the first, or True for each."""
        width = tokens.shape[-1]
        mlp = dataclasses.replace(self.config, init_name="xavier")
        init = nn.initializers.xavier_uniform()
        probe = parameter(self, "probe", init, (None, "embed"), (1, width))
        probe = jnp.broadcast_to(probe.astype(self.config.dtype), (tokens.shape[0], 1, width))
        y = CrossAttention(
            self.config.num_heads,
            output_dim=width,
            kernel_init=mlp.inits(width).qkv,
            bias_init=nn.initializers.zeros,
            dtype=self.config.dtype,
            name="attention",
        )(probe, tokens, valid)
        x = LayerNorm(self.config.layer_norm_eps, name="norm")(y)
        x = Mlp(mlp, name="mlp")(x)
        return (y + x)[:, 0]
