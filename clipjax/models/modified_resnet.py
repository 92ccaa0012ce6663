"""The modified ResNet of CLIP (arXiv:1512.03385, arXiv:2103.00020).

Three 3x3 convolutions in the stem, strides that average first (anti-aliased, arXiv:1904.11486), and
attention in place of the final average. All convolutions pad explicitly: "SAME" with stride 2 would
pad the other side.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.layers.attention_pool import CrossAttention
from clipjax.layers.batch_norm import BatchNorm
from clipjax.layers.convolution import convolve_pixels
from clipjax.layers.execution import PLAIN, Execution
from clipjax.layers.initializers import parameter, uniform
from clipjax.layers.remat import rematerialised
from clipjax.models.features import ImageFeatures
from clipjax.models.tower_ranges import NO_PATCHES_OUT
from clipjax.ranges import FieldError, Many, Rule, check_fields, whole


class ModifiedResNet(nn.Module):
    """Stem, four stages of bottlenecks, attention pooling into the shared space.

    Its normalisations keep running statistics (collection `batch_stats`), so a training step covers
    a batch at once: gradient caching would normalise each micro-batch by itself.

    Attributes:
        image_size: pixels of a side, a multiple of 32.
        layers: bottlenecks in each of the four stages.
        width: channels after the stem; the last stage has 32 times as many.
        num_heads: of the attention pooling.
        output_dim: of the pooled features: the model's embed_dim, as there is no other projection.
        patch_dropout: 0; a ResNet has no patches to leave out.
        execution: the platform is read.
    """

    image_size: int
    layers: Sequence[int]
    width: int
    num_heads: int
    output_dim: int
    patch_dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"
    execution: Execution = PLAIN

    ranges: ClassVar[Mapping[str, Rule]] = {
        "image_size": whole(),
        "layers": Many(whole(), "whole numbers from 1", exactly=4),
        "width": whole(2),
        "num_heads": whole(),
        "output_dim": whole(),
        "patch_dropout": NO_PATCHES_OUT,
    }

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        check_fields(self, self.ranges)
        if self.image_size % 32:
            raise ValueError(f"image_size = {self.image_size}: a ResNet takes a multiple of 32")
        if self.width % 2:
            raise FieldError(f"width = {self.width}: the stem halves it; take an even number")
        if 32 * self.width % self.num_heads:
            raise FieldError(
                f"num_heads = {self.num_heads}: {32 * self.width} channels (32 width) do not "
                "divide by it"
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
        """Encodes normalised images [batch, height, width, 3]; `hidden` is one map a stage."""
        del example_ids  # nothing is drawn
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"images are {images.shape[1:]}, the model takes "
                f"({self.image_size}, {self.image_size}, 3); set image_size"
            )
        x = images.astype(self.dtype)
        for i, channels in enumerate((self.width // 2, self.width // 2, self.width), 1):
            stride = 2 if i == 1 else 1
            x = conv(channels, 3, self.dtype, f"conv{i}", self.execution, stride=stride)(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, train))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        block_class = rematerialised(Bottleneck, self.remat, static_argnums=(2,))
        stages = []
        for stage, num_blocks in enumerate(self.layers):
            for i in range(num_blocks):
                x = block_class(
                    channels=self.width * 2**stage,
                    stride=2 if stage and not i else 1,
                    dtype=self.dtype,
                    execution=self.execution,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            stages.append(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        pool = GridAttentionPool(self.num_heads, self.output_dim, self.dtype, name="attention_pool")
        return ImageFeatures(pool(tokens), tokens, tuple(stages) if keep_hidden else None)


class Bottleneck(nn.Module):
    """`relu(x + bn3(conv3(pool(f(x)))))`, f two convolutions; stride 1 in all of them.

    Attributes:
        channels: inside; four times as many come out.
        stride: of the average pooling, which stands in for strided convolutions.
    """

    channels: int
    stride: int
    dtype: Any
    execution: Execution = PLAIN

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the block to [batch, height, width, channels]."""
        x = nn.with_logical_constraint(x, ("batch", None, None, None))
        window = (self.stride, self.stride)
        y = conv(self.channels, 1, self.dtype, "conv1", self.execution)(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train))
        y = conv(self.channels, 3, self.dtype, "conv2", self.execution)(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train))
        if self.stride > 1:
            y = nn.avg_pool(y, window, window)
        y = conv(4 * self.channels, 1, self.dtype, "conv3", self.execution)(y)
        # Zero at the start: each block begins as its shortcut.
        y = BatchNorm(scale_init=nn.initializers.zeros, name="bn3")(y, train)
        if self.stride > 1 or x.shape[-1] != 4 * self.channels:
            if self.stride > 1:
                x = nn.avg_pool(x, window, window)
            x = conv(4 * self.channels, 1, self.dtype, "downsample_conv", self.execution)(x)
            x = BatchNorm(name="downsample_bn")(x, train)
        return nn.relu(x + y)


class GridAttentionPool(nn.Module):
    """The mean of the grid, with a position of its own, attends to the grid and to itself."""

    num_heads: int
    output_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Pools [batch, positions, width] to [batch, output]."""
        width = tokens.shape[-1]
        deviation = width**-0.5
        x = jnp.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)
        init, axes = nn.initializers.normal(deviation), ("position", "embed")
        positions = parameter(self, "position_embedding", init, axes, x.shape[1:])
        x += positions.astype(x.dtype)
        attention = CrossAttention(
            self.num_heads,
            output_dim=self.output_dim,
            kernel_init=nn.initializers.normal(deviation),
            bias_init=uniform(deviation),
            dtype=self.dtype,
            name="attention",
        )
        return attention(x[:, :1], x)[:, 0]


def conv(
    channels: int, size: int, dtype: Any, name: str, execution: Execution, *, stride: int = 1
) -> nn.Conv:
    """A convolution without bias, padded by half its size, with torch's initialisation."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        fan_in = shape[0] * shape[1] * shape[2]
        return uniform(fan_in**-0.5)(key, shape, dtype)

    is_product = execution.platform == "cpu" and size == stride == 1
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        dtype=dtype,
        conv_general_dilated=convolve_pixels if is_product else None,
        kernel_init=nn.with_logical_partitioning(init, (None, None, "embed", "mlp")),
        name=name,
    )
