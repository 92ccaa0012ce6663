"""Layer normalisation with the statistics and the affine map in float32."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Array, Float
from clipjax.layers.initializers import parameter


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(var + eps) * scale + bias`, in float32, cast back (arXiv:1607.06450).

    Attributes:
        eps: added to the variance. 1e-5 for OpenAI and OpenCLIP, 1e-6 for big_vision; flax's own
            default of 1e-6 is never relied on.
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Normalises the last dimension."""
        shape = x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), shape)
        bias = parameter(self, "bias", nn.initializers.zeros, ("embed",), shape)
        values = x.astype(jnp.float32)
        centred = values - values.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


def l2_normalise(x: Float[Array, "... embed"], eps: float = 1e-12) -> Float[Array, "... embed"]:
    """`x / sqrt(sum(x^2) + eps^2)` in float32; a zero vector stays zero, with a finite gradient.

    For any vector longer than 1e-6 this equals `x / |x|` in float32.
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + eps**2)
