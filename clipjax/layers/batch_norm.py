"""Batch normalisation over the global batch, with running statistics kept as torch keeps them."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Array, Float
from clipjax.layers.initializers import Initializer, parameter


class BatchNorm(nn.Module):
    """`(x - mean) / sqrt(var + eps) * scale + bias`, in float32, cast back (arXiv:1502.03167).

    When training, mean and (biased) variance are those of the whole global batch: under `jax.jit`
    a mean over a sharded dimension is the mean over all devices. The collection `batch_stats` holds
    the running `mean` and `var` that evaluation uses; the variance enters it unbiased, as in torch.

    Attributes:
        scale_init: zeros for the last normalisation of a residual branch.
        eps: added to the variance.
        momentum: of the running statistics: `m old + (1 - m) new`; torch's momentum is 1 - m.
    """

    scale_init: Initializer = nn.initializers.ones
    eps: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width channels"]:
        """Normalises each channel; `train` uses the batch's statistics and updates the running."""
        channels = x.shape[-1]
        scale = parameter(self, "scale", self.scale_init, ("mlp",), (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, ("mlp",), (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        values = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            mean = values.mean((0, 1, 2))
            var = jnp.square(values - mean).mean((0, 1, 2))
            count = math.prod(x.shape[:3])
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self._mix(running_mean.value, mean)
            running_var.value = self._mix(running_var.value, unbiased)
        normal = (values - mean) * jax.lax.rsqrt(var + self.eps)
        return (normal * scale + bias).astype(x.dtype)

    def _mix(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * old + (1 - self.momentum) * new
