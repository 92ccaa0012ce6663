"""Vision transformer of SigLIP 2 for images of any aspect (NaFlex, arXiv:2502.14786)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Patches
from clipjax.layers.attention_pool import MapHead
from clipjax.layers.execution import PLAIN, Execution
from clipjax.layers.initializers import parameter
from clipjax.layers.normalization import LayerNorm
from clipjax.layers.position_grid import positions_of_patches
from clipjax.layers.transformer import BlockConfig, Transformer
from clipjax.models.features import ImageFeatures
from clipjax.models.tower_ranges import NO_PATCHES_OUT, TRANSFORMER, VISION, check_heads
from clipjax.ranges import Rule, check_fields, whole


class NaFlexVisionTransformer(nn.Module):
    """Patches of images of any aspect, positions resized to each, masked attention, MAP head.

    Padding is masked everywhere; its rows in `tokens` and `hidden` mean nothing. Images of one
    size are taken as they are, too: training on such is training as of any ViT.

    Attributes:
        patch_size: pixels of a patch's side.
        position_side: patches of a side of the learned position table.
        width: of the tokens.
        depth, num_heads, mlp_dim, activation, layer_norm_eps: of the blocks, see `BlockConfig`.
        init_name: of the blocks, a name of BLOCK_INITS.
        patch_dropout: 0; here images have different numbers of patches.
        dropout: rate of the residual branches, when training.
    """

    patch_size: int
    position_side: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_eps: float = 1e-6
    init_name: str = "xavier"
    patch_dropout: float = 0.0
    dropout: float = 0.0
    dtype: Any = jnp.float32
    execution: Execution = PLAIN

    ranges: ClassVar[Mapping[str, Rule]] = {
        **TRANSFORMER,
        **VISION,
        "position_side": whole(),
        "patch_dropout": NO_PATCHES_OUT,
    }

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        check_fields(self, self.ranges)
        check_heads(self.width, self.num_heads)

    @nn.compact
    def __call__(
        self,
        images: jax.Array | Patches,
        *,
        train: bool = False,
        example_ids: jax.Array | None = None,
        keep_hidden: bool | int = False,
    ) -> ImageFeatures:
        """Encodes normalised Patches, or images [batch, height, width, 3] of one size."""
        pixels, grid = images if isinstance(images, Patches) else self._cut(images)
        num_patches, lengths = pixels.shape[1], grid.prod(axis=1)
        x = self._embed(pixels)
        x = x + positions_of_patches(self._table(), grid, num_patches).astype(x.dtype)
        x, hidden = Transformer(BlockConfig.of(self), name="transformer")(
            x, lengths, example_ids=example_ids, train=train, keep_hidden=keep_hidden
        )
        x = LayerNorm(self.layer_norm_eps, self.execution.lean, name="ln_post")(x)
        head = MapHead(BlockConfig.of(self), name="map_head")
        return ImageFeatures(head(x, lengths), x, hidden)

    def _cut(self, images: jax.Array) -> Patches:
        batch, height, width, _ = images.shape
        size = self.patch_size
        if height % size or width % size:
            raise ValueError(
                f"images are {height} x {width}, which patches of {size} do not fill; "
                "set image_size to a multiple"
            )
        rows, columns = height // size, width // size
        pixels = images.reshape(batch, rows, size, columns, size, 3).swapaxes(2, 3)
        grid = jnp.broadcast_to(jnp.array([rows, columns]), (batch, 2))
        return Patches(pixels.reshape(batch, rows * columns, size * size * 3), grid)

    def _embed(self, pixels: jax.Array) -> jax.Array:
        size = self.patch_size
        if pixels.shape[-1] != size * size * 3:
            raise ValueError(
                f"patches have {pixels.shape[-1]} numbers, those of {size} x {size} pixels have "
                f"{size * size * 3}; set patch_size"
            )
        init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        axes, shape = ("patch", None, None, "embed"), (size, size, 3, self.width)
        kernel = parameter(self, "patch_kernel", init, axes, shape)
        bias = parameter(self, "patch_bias", zeros, ("embed",), (self.width,))
        kernel = kernel.reshape(-1, self.width).astype(self.dtype)
        return pixels.astype(self.dtype) @ kernel + bias.astype(self.dtype)

    def _table(self) -> jax.Array:
        side = self.position_side
        init, shape = nn.initializers.normal(self.width**-0.5), (side * side, self.width)
        table = parameter(self, "position_embedding", init, ("position", "embed"), shape)
        return table.reshape(side, side, self.width)
