"""Image encoder of the Perception Encoder's core models (PE-Core, arXiv:2504.13181)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.layers.attention_pool import MapHead
from clipjax.layers.execution import PLAIN, Execution
from clipjax.layers.normalization import LayerNorm
from clipjax.layers.rotary import Rotary2D
from clipjax.layers.transformer import BlockConfig, Transformer
from clipjax.models.features import ImageFeatures
from clipjax.models.patches import add_class_token, embed_patches, learned_positions
from clipjax.models.tower_ranges import (
    NO_PATCHES_OUT,
    TRANSFORMER,
    VISION,
    check_heads,
    check_patches,
)
from clipjax.ranges import FieldError, Flag, Optional, Rule, check_fields, whole


class PerceptionEncoder(nn.Module):
    """A ViT with learned and rotary positions, all of whose tokens a probe attends to.

    The class token, where there is one, is neither turned nor pooled by itself.

    Attributes:
        image_size: pixels of a side.
        patch_size: pixels of a patch's side.
        width: of the tokens.
        depth, num_heads, mlp_dim, activation, layer_norm_eps: of the blocks, see `BlockConfig`.
        class_token: whether a learned token stands in front of the patches.
        pool_heads: heads of the attention pooling, whose MLP is four times as wide as the tokens.
        rotary_side: patches of a side that the rotary positions belong to; those of another grid
            are stretched to it. None: those of `image_size`.
        init_name: of the blocks, a name of BLOCK_INITS.
        patch_dropout: 0; here every patch has its place.
        dropout: rate of the residual branches, when training.
        table_image_size: pixels of a side that the learned positions belong to, where that is not
            `image_size`. None: `image_size`.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str = "gelu"
    layer_norm_eps: float = 1e-5
    class_token: bool = True
    pool_heads: int = 8
    rotary_side: int | None = None
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
        "class_token": Flag(),
        "pool_heads": TRANSFORMER["num_heads"],
        "rotary_side": Optional(whole(), "of image_size"),
        "patch_dropout": NO_PATCHES_OUT,
        "table_image_size": Optional(whole(), "image_size"),
    }

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        check_fields(self, self.ranges)
        check_heads(self.width, self.num_heads)
        check_heads(self.width, self.pool_heads)
        check_patches(self.patch_size, self.image_size)
        if self.width // self.num_heads % 4:
            raise FieldError(
                f"num_heads = {self.num_heads}: rotary positions take heads of a multiple of 4, "
                f"and width = {self.width} gives {self.width // self.num_heads}"
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
        x = embed_patches(self, images)
        num_extra = int(self.class_token)
        if self.class_token:
            x = add_class_token(self, x)
        x = x + learned_positions(self, num_extra).astype(x.dtype)
        x = LayerNorm(self.layer_norm_eps, self.execution.lean, name="ln_pre")(x)
        side = self.image_size // self.patch_size
        rotary = Rotary2D(side, num_extra, self.rotary_side)
        x, hidden = Transformer(BlockConfig.of(self, rotary=rotary), name="transformer")(
            x, example_ids=example_ids, train=train, keep_hidden=keep_hidden
        )
        x = LayerNorm(self.layer_norm_eps, self.execution.lean, name="ln_post")(x)
        pool = dataclasses.replace(
            BlockConfig.of(self), num_heads=self.pool_heads, mlp_dim=4 * self.width
        )
        return ImageFeatures(MapHead(pool, name="map_head")(x), x, hidden)
