"""BERT's pooler, which the ViT of transformers has as well."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Array, Float
from clipjax.layers.initializers import parameter


class Pooler(nn.Module):
    """`tanh(x @ kernel + bias)` of the first token, width to width (arXiv:1810.04805).

    Attributes:
        dtype: of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        """Pools the first token of each example."""
        width, init = x.shape[-1], nn.initializers.normal(0.02)
        kernel = parameter(self, "kernel", init, ("embed", "projection"), (width, width))
        bias = parameter(self, "bias", nn.initializers.zeros, ("projection",), (width,))
        return jnp.tanh(x @ kernel.astype(self.dtype) + bias.astype(self.dtype))
