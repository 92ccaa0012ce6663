"""The two towers, their projections and the learned temperature (arXiv:2103.00020)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.layers.normalization import l2_normalise
from clipjax.models.features import ImageFeatures, TextFeatures


class CLIPOutput(NamedTuple):
    """What the loss takes.

    Attributes:
        image_embeds: [batch, embed] float32, of length 1.
        text_embeds: [batch, embed] float32, of length 1.
        logit_scale: [] float32, the parameter: the logarithm of the scale.
        logit_bias: [] float32, or None.
    """

    image_embeds: jax.Array
    text_embeds: jax.Array
    logit_scale: jax.Array
    logit_bias: jax.Array | None


class CLIP(nn.Module):
    """Image encoder and text encoder with projections into a shared space.

    Attributes:
        image_encoder: a module that returns ImageFeatures.
        text_encoder: a module that returns TextFeatures.
        embed_dim: of the shared space.
        logit_scale_init: the scale at the start, not its logarithm: 1/0.07 for CLIP.
        logit_bias_init: the bias at the start, or None for a model without one (SigLIP: -10).
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    embed_dim: int
    logit_scale_init: float = 1 / 0.07
    logit_bias_init: float | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares the projections and the temperature."""
        self.image_projection = Projection(self.embed_dim, self.dtype)
        self.text_projection = Projection(self.embed_dim, self.dtype)
        constant = nn.initializers.constant
        self.logit_scale = self.param(
            "logit_scale", constant(math.log(self.logit_scale_init)), (), jnp.float32
        )
        if self.logit_bias_init is not None:
            self.logit_bias = self.param(
                "logit_bias", constant(self.logit_bias_init), (), jnp.float32
            )

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        *,
        train: bool = False,
        example_ids: jax.Array | None = None,
    ) -> CLIPOutput:
        """Encodes a batch of pairs.

        Args:
            images: [batch, height, width, 3], normalised.
            tokens: [batch, length] int32.
            train: whether dropouts draw and statistics are updated.
            example_ids: [batch] int32 that key each example's draws; None means 0, 1, 2, ...
        """
        return CLIPOutput(
            self.encode_image(images, train=train, example_ids=example_ids),
            self.encode_text(tokens, train=train, example_ids=example_ids),
            self.logit_scale,
            self.logit_bias if self.logit_bias_init is not None else None,
        )

    def encode_image(
        self, images: jax.Array, *, train: bool = False, example_ids: jax.Array | None = None
    ) -> jax.Array:
        """Embeds normalised images: [batch, embed] float32, of length 1."""
        features = self.image_encoder(images, train=train, example_ids=example_ids)
        return self._embed(self.image_projection, features.pooled)

    def encode_text(
        self, tokens: jax.Array, *, train: bool = False, example_ids: jax.Array | None = None
    ) -> jax.Array:
        """Embeds token ids: [batch, embed] float32, of length 1."""
        features = self.text_encoder(tokens, train=train, example_ids=example_ids)
        return self._embed(self.text_projection, features.pooled)

    def _embed(self, projection: nn.Module, pooled: jax.Array) -> jax.Array:
        pooled = nn.with_logical_constraint(pooled, ("batch", None))
        return nn.with_logical_constraint(l2_normalise(projection(pooled)), ("batch", None))

    def image_features(self, images: jax.Array, *, keep_hidden: bool = False) -> ImageFeatures:
        """Returns the image tower's features, before the projection."""
        return self.image_encoder(images, keep_hidden=keep_hidden)

    def text_features(self, tokens: jax.Array, *, keep_hidden: bool = False) -> TextFeatures:
        """Returns the text tower's features, before the projection."""
        return self.text_encoder(tokens, keep_hidden=keep_hidden)


class Projection(nn.Module):
    """`features @ kernel`, no bias; kernel N(0, width^-0.5)."""

    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects [batch, width] to [batch, embed]."""
        width = x.shape[-1]
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(width**-0.5), ("embed", "projection")
            ),
            (width, self.embed_dim),
            jnp.float32,
        )
        return x @ kernel.astype(self.dtype)
