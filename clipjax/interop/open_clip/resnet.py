"""OpenAI's and OpenCLIP's modified ResNet, with its running statistics."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.leaves import (
    CONV,
    Leaf,
    batch_norm_leaves,
    leaf,
    out_leaves,
    qkv_bias_leaf,
    qkv_kernel_leaf,
    split_bias,
    split_kernel,
)
from clipjax.interop.open_clip.vit import IMAGE


def _conv_and_norm(ours: tuple[str, str], theirs: tuple[str, str]) -> list[Leaf]:
    """A convolution and the batch normalisation behind it."""
    (conv, norm), (their_conv, their_norm) = ours, theirs
    return [
        leaf(f"{IMAGE}/{conv}/kernel", f"visual.{their_conv}.weight", CONV),
        *batch_norm_leaves(f"{IMAGE}/{norm}", f"visual.{their_norm}"),
    ]


def resnet_leaves(spec: Mapping[str, Any]) -> list[Leaf]:
    """Stem, bottlenecks, attention pooling."""
    found = []
    for i in (1, 2, 3):
        found += _conv_and_norm((f"conv{i}", f"bn{i}"), (f"conv{i}", f"bn{i}"))
    for stage, num_blocks in enumerate(spec["image"]["layers"], 1):
        for i in range(num_blocks):
            ours, theirs = f"layer{stage}_{i}", f"layer{stage}.{i}"
            for k in (1, 2, 3):
                found += _conv_and_norm(
                    (f"{ours}/conv{k}", f"{ours}/bn{k}"), (f"{theirs}.conv{k}", f"{theirs}.bn{k}")
                )
            if i == 0:  # each stage begins with four times the channels that come in
                found += _conv_and_norm(
                    (f"{ours}/downsample_conv", f"{ours}/downsample_bn"),
                    (f"{theirs}.downsample.0", f"{theirs}.downsample.1"),
                )
    return [*found, *_pool_leaves(spec["image"]["num_heads"])]


def _pool_leaves(num_heads: int) -> list[Leaf]:
    ours, theirs = f"{IMAGE}/attention_pool/attention", "visual.attnpool"
    key, value = f"{theirs}.k_proj", f"{theirs}.v_proj"
    return [
        leaf(f"{IMAGE}/attention_pool/position_embedding", f"{theirs}.positional_embedding"),
        leaf(f"{ours}/q_kernel", f"{theirs}.q_proj.weight", split_kernel(num_heads)),
        leaf(f"{ours}/q_bias", f"{theirs}.q_proj.bias", split_bias(num_heads)),
        qkv_kernel_leaf(f"{ours}/kv_kernel", [f"{key}.weight", f"{value}.weight"], num_heads),
        qkv_bias_leaf(f"{ours}/kv_bias", [f"{key}.bias", f"{value}.bias"], num_heads),
        *out_leaves(ours, f"{theirs}.c_proj", num_heads),
    ]
