"""The two towers, their projections and the learned temperature (arXiv:2103.00020)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.diagnostics import INTERMEDIATES, NORMS
from clipjax.layers.activations import gelu
from clipjax.layers.execution import Execution, under_execution
from clipjax.layers.initializers import parameter
from clipjax.layers.normalization import l2_normalise
from clipjax.models.features import ImageFeatures, TextFeatures
from clipjax.ranges import FieldError

PROJECTIONS = ("linear", "linear_bias", "mlp", "none")


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


class CLIPOutputWithTokens(NamedTuple):
    """What an objective takes that asks for tokens.

    Attributes:
        image_embeds: as of CLIPOutput, and so the next three.
        text_embeds: likewise.
        logit_scale: likewise.
        logit_bias: likewise.
        image_tokens: [batch, positions, width], before pooling; None unless asked for.
        text_tokens: [batch, length, width], before pooling; None unless asked for.
    """

    image_embeds: jax.Array
    text_embeds: jax.Array
    logit_scale: jax.Array
    logit_bias: jax.Array | None
    image_tokens: jax.Array | None = None
    text_tokens: jax.Array | None = None


def as_output(output: Sequence[Any]) -> CLIPOutput | CLIPOutputWithTokens:
    """Names the fields of what an `apply_fn` gives as a tuple: of four, or up to six."""
    return CLIPOutput(*output) if len(output) == 4 else CLIPOutputWithTokens(*output)


class CLIP(nn.Module):
    """Image encoder and text encoder with projections into a shared space.

    Attributes:
        image_encoder: a module that returns ImageFeatures.
        text_encoder: a module that returns TextFeatures.
        embed_dim: of the shared space.
        logit_scale_init: the scale at the start, not its logarithm: 1/0.07 for CLIP.
        logit_bias_init: the bias at the start, or None for a model without one (SigLIP: -10).
        image_projection_kind: of PROJECTIONS: `linear`, `linear_bias`, `mlp`, or `none` where the
            pooled features are the embedding already.
        text_projection_kind: likewise.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    embed_dim: int
    logit_scale_init: float = 1 / 0.07
    logit_bias_init: float | None = None
    image_projection_kind: str = "linear"
    text_projection_kind: str = "linear"
    dtype: Any = jnp.float32

    def under(self, execution: Execution) -> "CLIP":
        """The same model, its towers run in another way."""
        towers = {
            name: under_execution(getattr(self, name), execution)
            for name in ("image_encoder", "text_encoder")
        }
        return self.clone(**towers)

    def for_shorter_texts(self, context_length: int) -> "CLIP":
        """The same model for texts of fewer tokens, where its text tower allows for them."""
        return self.clone(text_encoder=self.text_encoder.for_shorter_texts(context_length))

    def setup(self) -> None:
        """Declares the projections and the temperature."""
        self.image_projection = self._projection("image", self.image_projection_kind)
        self.text_projection = self._projection("text", self.text_projection_kind)
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
        with_tokens: Sequence[str] = (),
    ) -> CLIPOutput | CLIPOutputWithTokens:
        """Encodes a batch of pairs.

        Args:
            images: [batch, height, width, 3], normalised.
            tokens: [batch, length] int32.
            train: whether dropouts draw and statistics are updated.
            example_ids: [batch] int32 that key each example's draws; None means 0, 1, 2, ...
            with_tokens: `image_tokens`, `text_tokens`: what the output holds besides.
        """
        image = self.image_encoder(images, train=train, example_ids=example_ids)
        image_embeds = self._embed("image", self.image_projection, image.pooled)
        text = self.text_encoder(tokens, train=train, example_ids=example_ids)
        output = CLIPOutput(
            image_embeds,
            self._embed("text", self.text_projection, text.pooled),
            self.logit_scale,
            self.logit_bias if self.logit_bias_init is not None else None,
        )
        if not with_tokens:
            return output
        return CLIPOutputWithTokens(
            *output,
            image.tokens if "image_tokens" in with_tokens else None,
            text.tokens if "text_tokens" in with_tokens else None,
        )

    def encode_image(
        self, images: jax.Array, *, train: bool = False, example_ids: jax.Array | None = None
    ) -> jax.Array:
        """Embeds normalised images: [batch, embed] float32, of length 1."""
        features = self.image_encoder(images, train=train, example_ids=example_ids)
        return self._embed("image", self.image_projection, features.pooled)

    def encode_text(
        self, tokens: jax.Array, *, train: bool = False, example_ids: jax.Array | None = None
    ) -> jax.Array:
        """Embeds token ids: [batch, embed] float32, of length 1."""
        features = self.text_encoder(tokens, train=train, example_ids=example_ids)
        return self._embed("text", self.text_projection, features.pooled)

    def _projection(self, tower: str, kind: str) -> nn.Module | None:
        if kind not in PROJECTIONS:
            raise FieldError(
                f"{tower}_projection = {kind!r} is unknown; allowed are {', '.join(PROJECTIONS)}"
            )
        if kind == "none":
            return None
        if kind == "mlp":
            return MlpProjection(self.embed_dim, self.dtype)
        return Projection(self.embed_dim, self.dtype, use_bias=kind == "linear_bias")

    def _embed(self, tower: str, projection: nn.Module | None, pooled: jax.Array) -> jax.Array:
        pooled = nn.with_logical_constraint(pooled, ("batch", None))
        if projection is not None:
            pooled = projection(pooled)
        elif pooled.shape[-1] != self.embed_dim:
            raise FieldError(
                f"{tower}_projection = 'none' passes on {pooled.shape[-1]} features, "
                f"embed_dim = {self.embed_dim}; make them equal or project"
            )
        if self.is_mutable_collection(INTERMEDIATES):  # asked for, by a diagnosis
            norms = jnp.linalg.norm(pooled.astype(jnp.float32), axis=-1)
            self.sow(INTERMEDIATES, NORMS.format(tower), norms)
        return nn.with_logical_constraint(l2_normalise(pooled), ("batch", None))

    def image_features(
        self, images: jax.Array, *, keep_hidden: bool | int = False
    ) -> ImageFeatures:
        """Returns the image tower's features, before the projection; see ImageFeatures."""
        return self.image_encoder(images, keep_hidden=keep_hidden)

    def text_features(self, tokens: jax.Array, *, keep_hidden: bool | int = False) -> TextFeatures:
        """Returns the text tower's features, before the projection; see TextFeatures."""
        return self.text_encoder(tokens, keep_hidden=keep_hidden)


class Projection(nn.Module):
    """`features @ kernel`, or `features @ kernel + bias`; kernel of deviation width^-0.5.

    Attributes:
        embed_dim: of the shared space.
        dtype: of the computation.
        use_bias: adds a bias, and draws the kernel as big_vision does, whose form this is.
    """

    embed_dim: int
    dtype: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects [batch, width] to [batch, embed]."""
        width = x.shape[-1]
        init = nn.initializers.normal(width**-0.5)
        if self.use_bias:
            init = nn.initializers.lecun_normal()
        kernel = parameter(self, "kernel", init, ("embed", "projection"), (width, self.embed_dim))
        x = x @ kernel.astype(self.dtype)
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = parameter(self, "bias", zeros, ("projection",), (self.embed_dim,))
            x += bias.astype(self.dtype)
        return x


class MlpProjection(nn.Module):
    """`gelu(features @ fc) @ proj` without biases, hidden width half way (OpenCLIP, XLM-R)."""

    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects [batch, width] to [batch, embed]."""
        x = Projection((x.shape[-1] + self.embed_dim) // 2, self.dtype, name="fc")(x)
        return Projection(self.embed_dim, self.dtype, name="proj")(gelu(x))
