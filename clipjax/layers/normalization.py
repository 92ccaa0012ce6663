"""Layer normalisation with the statistics and the affine map in float32."""

import functools

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
        lean: leaves the backward pass `x` and two statistics a row, instead of what autodiff keeps,
            six float32 copies of it.
    """

    eps: float
    lean: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Normalises the last dimension."""
        shape = x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), shape)
        bias = parameter(self, "bias", nn.initializers.zeros, ("embed",), shape)
        if self.lean:
            return _layer_norm(x, scale, bias, self.eps)
        centred, deviation = _centred(x, self.eps)
        return (centred * deviation * scale + bias).astype(x.dtype)


def _centred(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """`x - mean` and `1 / sqrt(var + eps)` in float32."""
    values = x.astype(jnp.float32)
    centred = values - values.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred, jax.lax.rsqrt(variance + eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    return _layer_norm_fwd(x, scale, bias, eps)[0]


def _layer_norm_fwd(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    values = x.astype(jnp.float32)
    mean = values.mean(-1, keepdims=True)
    centred, deviation = _centred(x, eps)
    return (centred * deviation * scale + bias).astype(x.dtype), (x, scale, mean, deviation)


def _layer_norm_bwd(
    eps: float, kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, deviation = kept

    def in_float32(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (x.astype(jnp.float32) - mean) * deviation, gradient.astype(jnp.float32)

    rows = tuple(range(x.ndim - 1))
    normal, of_out = in_float32(x, gradient)
    shift = (of_out * scale).mean(-1, keepdims=True)
    along = (of_out * scale * normal).mean(-1, keepdims=True)
    of_scale, of_bias = (of_out * normal).sum(rows), of_out.sum(rows)
    # Behind the barrier all is computed from what is kept; without it the compiler writes float32
    # copies of both arrays for their second use.
    x, gradient, shift, along = jax.lax.optimization_barrier((x, gradient, shift, along))
    normal, of_out = in_float32(x, gradient)
    of_x = deviation * (of_out * scale - shift - normal * along)
    return of_x.astype(x.dtype), of_scale, of_bias


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def l2_normalise(x: Float[Array, "... embed"], eps: float = 1e-12) -> Float[Array, "... embed"]:
    """`x / sqrt(sum(x^2) + eps^2)` in float32; a zero vector stays zero, with a finite gradient.

    For any vector longer than 1e-6 this equals `x / |x|` in float32.
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + eps**2)
