"""Vision transformer of CLIP, SigLIP and CLIPA (arXiv:2010.11929, 2103.00020, 2303.15343)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.layers.attention_pool import MapHead
from clipjax.layers.dropout import uniform_per_example
from clipjax.layers.execution import PLAIN, Execution
from clipjax.layers.normalization import LayerNorm
from clipjax.layers.pooler import Pooler
from clipjax.layers.position_embeddings import sincos_2d
from clipjax.layers.transformer import BlockConfig, Transformer
from clipjax.models.features import ImageFeatures
from clipjax.models.patches import add_class_token, embed_patches, learned_positions
from clipjax.models.tower_ranges import TRANSFORMER, VISION, check_heads, check_patches
from clipjax.ranges import Choice, FieldError, Flag, Optional, Rule, check_fields, whole

POOLINGS = ("cls", "mean", "patch_mean", "map", "pooler")
POSITIONS = ("learned", "sincos2d")


class VisionTransformer(nn.Module):
    """Patches, positions, pre-norm blocks, pooling.

    Attributes:
        image_size: pixels of a side; patches beyond the last whole one are cut off.
        patch_size: pixels of a patch's side.
        width: of the tokens.
        depth, num_heads, mlp_dim, activation, layer_norm_eps: of the blocks, see `BlockConfig`.
        pooling: `cls` (class token, then the final norm), `pooler` (the same, then a dense layer
            with tanh: the ViT of transformers' dual encoders), `mean` (no class token; mean of the
            patches, then the final norm), `patch_mean` (a class token that is not pooled; mean of
            the patches, then the final norm: CLIPA) or `map` (no class token; the final norm, then
            a learned probe attends to the patches: SigLIP).
        positions: `learned`, or `sincos2d` for fixed ones, which any image size has.
        pre_norm: normalise the embedded patches before the first block (OpenAI, OpenCLIP).
        patch_bias: whether the patch embedding has a bias (big_vision).
        init_name: of the blocks, a name of BLOCK_INITS: torch (OpenAI) or xavier (big_vision).
        patch_dropout: fraction of the patches left out of each training example, drawn anew each
            step (FLIP, arXiv:2212.00794).
        dropout: rate of the residual branches, when training.
        table_image_size: pixels of a side that the learned positions belong to, where that is not
            `image_size`: they are resized as they are used, and the gradient goes through (a stage
            of training on smaller images). None: `image_size`.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_eps: float = 1e-5
    pooling: str = "cls"
    positions: str = "learned"
    pre_norm: bool = True
    patch_bias: bool = False
    init_name: str = "torch"
    patch_dropout: float = 0.0
    dropout: float = 0.0
    table_image_size: int | None = None
    dtype: Any = jnp.float32
    execution: Execution = PLAIN

    ranges: ClassVar[Mapping[str, Rule]] = {
        **TRANSFORMER,
        **VISION,
        "image_size": whole(),
        "pooling": Choice(POOLINGS),
        "positions": Choice(POSITIONS),
        "pre_norm": Flag(),
        "patch_bias": Flag(),
        "table_image_size": Optional(whole(), "image_size"),
    }

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        check_fields(self, self.ranges)
        check_heads(self.width, self.num_heads)
        check_patches(self.patch_size, self.image_size)
        if self.positions == "sincos2d" and (self.width % 4 or self.width < 8):
            raise FieldError(
                f"width = {self.width}: sincos2d positions take multiples of 4, from 8"
            )

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        example_ids: jax.Array | None = None,
        keep_hidden: bool | int = False,
    ) -> ImageFeatures:
        """Encodes normalised images [batch, height, width, 3]."""
        x = embed_patches(self, images, use_bias=self.patch_bias)
        num_patches = x.shape[1]
        if self.pooling in ("cls", "patch_mean", "pooler"):
            x = add_class_token(self, x)
        x = x + self._positions(x.shape[1], num_patches).astype(x.dtype)
        if train and self.patch_dropout:
            x = self._drop_patches(x, num_patches, example_ids)
        if self.pre_norm:
            x = LayerNorm(self.layer_norm_eps, self.execution.lean, name="ln_pre")(x)
        x, hidden = Transformer(BlockConfig.of(self), name="transformer")(
            x,
            example_ids=example_ids,
            train=train,
            keep_hidden=keep_hidden,
            position=0 if self.pools_one_token else None,
        )
        norm = LayerNorm(self.layer_norm_eps, self.execution.lean, name="ln_post")
        if self.pooling == "map":
            x = norm(x)
            head = MapHead(BlockConfig.of(self), name="map_head")
            return ImageFeatures(head(x), x, hidden)
        if self.pooling == "patch_mean":
            x = x[:, 1:]
        pooled = norm(x[:, 0] if self.pooling in ("cls", "pooler") else x.mean(axis=1))
        if self.pooling == "pooler":
            pooled = Pooler(self.dtype, name="pooler")(pooled)
        return ImageFeatures(pooled, x, hidden)

    @property
    def pools_one_token(self) -> bool:
        """Whether of the last block's tokens only the first is pooled.

        A tower that inherits from this one may read the others, and says for itself if not.
        """
        return type(self) is VisionTransformer and self.pooling in ("cls", "pooler")

    def _positions(self, length: int, num_patches: int) -> jax.Array:
        num_extra = length - num_patches
        if self.positions == "sincos2d":
            grid = self.image_size // self.patch_size
            return jnp.pad(sincos_2d(grid, self.width), ((num_extra, 0), (0, 0)))
        return learned_positions(self, num_extra)

    def _drop_patches(
        self, x: jax.Array, num_patches: int, example_ids: jax.Array | None
    ) -> jax.Array:
        """Keeps a random subset of the patches, in their order; the class token always stays."""
        num_extra = x.shape[1] - num_patches
        num_kept = max(1, round(num_patches * (1 - self.patch_dropout)))
        ids = jnp.arange(x.shape[0]) if example_ids is None else example_ids
        noise = uniform_per_example(self.make_rng("dropout"), ids, (num_patches,))
        kept = jnp.sort(jnp.argsort(noise, axis=1)[:, :num_kept], axis=1) + num_extra
        patches = jnp.take_along_axis(x, kept[:, :, None], axis=1)
        return jnp.concatenate([x[:, :num_extra], patches], axis=1)
