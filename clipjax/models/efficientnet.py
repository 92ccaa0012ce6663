"""EfficientNet, the image tower of ALIGN (arXiv:1905.11946, arXiv:2102.05918).

One table of stages; a size is a width factor and a depth factor. There is no top convolution: the
mean over the last stage's map is the embedding, as in the published ALIGN.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.layers.batch_norm import BatchNorm
from clipjax.layers.dropout import uniform_per_example
from clipjax.layers.remat import rematerialised
from clipjax.models.features import ImageFeatures
from clipjax.models.tower_ranges import NO_PATCHES_OUT
from clipjax.ranges import RATE, Number, Rule, check_fields, whole


class Stage(NamedTuple):
    """Blocks of one kind, before the factors."""

    channels: int
    num_blocks: int
    kernel: int
    stride: int
    expansion: int


STEM_CHANNELS = 32
STAGES = (
    Stage(16, 1, 3, 1, 1),
    Stage(24, 2, 3, 2, 6),
    Stage(40, 2, 5, 2, 6),
    Stage(80, 3, 3, 2, 6),
    Stage(112, 3, 5, 1, 6),
    Stage(192, 4, 5, 2, 6),
    Stage(320, 1, 3, 1, 6),
)


def round_channels(channels: int, factor: float) -> int:
    """Scales a number of channels to a multiple of 8, never more than a tenth below."""
    wanted = channels * factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class EfficientNet(nn.Module):
    """Stem, seven stages of inverted bottlenecks, mean over the map.

    Its normalisations keep running statistics (collection `batch_stats`), so a training step covers
    a batch at once, without gradient caching.

    Attributes:
        image_size: pixels of a side.
        width_factor: of the channels: 2.0 for B7.
        depth_factor: of the blocks a stage: 3.1 for B7.
        drop_connect: rate, at the last block, at which a training example skips a block; it grows
            linearly with the depth (arXiv:1603.09382).
        patch_dropout: 0; there are no patches to leave out.
    """

    image_size: int
    width_factor: float
    depth_factor: float
    drop_connect: float = 0.0
    patch_dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "image_size": whole(),
        "width_factor": Number(0, 100, open_low=True),
        "depth_factor": Number(0, 100, open_low=True),
        "drop_connect": RATE,
        "patch_dropout": NO_PATCHES_OUT,
    }

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        check_fields(self, self.ranges)

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
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"images are {images.shape[1:]}, the model takes "
                f"({self.image_size}, {self.image_size}, 3); set image_size"
            )
        channels = round_channels(STEM_CHANNELS, self.width_factor)
        x = convolution(channels, 3, self.dtype, "stem_conv", stride=2)(images.astype(self.dtype))
        x = nn.silu(normalisation("stem_bn")(x, train))
        block_class = rematerialised(InvertedBottleneck, self.remat, static_argnums=(2,))
        repeats = [math.ceil(self.depth_factor * stage.num_blocks) for stage in STAGES]
        hidden, done = [], 0
        for number, (stage, num_blocks) in enumerate(zip(STAGES, repeats, strict=True)):
            for i in range(num_blocks):
                x = block_class(
                    channels=round_channels(stage.channels, self.width_factor),
                    kernel=stage.kernel,
                    stride=1 if i else stage.stride,
                    expansion=stage.expansion,
                    has_shortcut=i > 0,
                    drop_connect=self.drop_connect * done / sum(repeats),
                    dtype=self.dtype,
                    name=f"stage{number + 1}_{i}",
                )(x, train, example_ids)
                done += 1
            hidden.append(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return ImageFeatures(tokens.mean(axis=1), tokens, tuple(hidden) if keep_hidden else None)


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel by itself, weigh the channels, project.

    Attributes:
        channels: that come out.
        kernel: pixels of the depthwise kernel's side.
        stride: of the depthwise convolution.
        expansion: factor of the channels inside.
        has_shortcut: whether the input is added to the result.
        drop_connect: rate at which a training example has its result left out.
    """

    channels: int
    kernel: int
    stride: int
    expansion: int
    has_shortcut: bool
    drop_connect: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, example_ids: jax.Array | None) -> jax.Array:
        """Applies the block to [batch, height, width, channels]."""
        x = nn.with_logical_constraint(x, ("batch", None, None, None))
        inside = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = convolution(inside, 1, self.dtype, "expand_conv")(y)
            y = nn.silu(normalisation("expand_bn")(y, train))
        depthwise = convolution(
            inside, self.kernel, self.dtype, "depthwise_conv", stride=self.stride, groups=inside
        )
        y = nn.silu(normalisation("depthwise_bn")(depthwise(y), train))
        gate = y.mean(axis=(1, 2), keepdims=True)
        gate = convolution(max(1, x.shape[-1] // 4), 1, self.dtype, "squeeze", bias=True)(gate)
        gate = convolution(inside, 1, self.dtype, "excite", bias=True)(nn.silu(gate))
        y = convolution(self.channels, 1, self.dtype, "project_conv")(y * nn.sigmoid(gate))
        y = normalisation("project_bn")(y, train)
        if not self.has_shortcut:
            return y
        if train and self.drop_connect:
            ids = jnp.arange(x.shape[0]) if example_ids is None else example_ids
            noise = uniform_per_example(self.make_rng("dropout"), ids, (1, 1, 1))
            y = jnp.where(noise >= self.drop_connect, y / (1 - self.drop_connect), 0)
        return x + y.astype(x.dtype)


def normalisation(name: str) -> BatchNorm:
    """Batch normalisation with EfficientNet's constants."""
    return BatchNorm(eps=1e-3, momentum=0.99, name=name)


def convolution(
    channels: int,
    size: int,
    dtype: Any,
    name: str,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv:
    """A convolution; with stride 2 one pixel less is padded above and left, as published."""
    before = (size - 1) // 2 - (1 if stride == 2 else 0)
    axes = (None, None, None, "mlp") if groups > 1 else (None, None, "embed", "mlp")
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=((before, size // 2),) * 2,
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",)),
        name=name,
    )
