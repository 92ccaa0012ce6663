"""OpenCLIP's own vision and text transformers (OpenAI's names), and timm's ViT for SigLIP."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.leaves import (
    CONV,
    Leaf,
    drop_axes,
    fused_bias,
    fused_kernel,
    leaf,
    linear_leaves,
    merge_kernel,
    norm_leaves,
    split_bias,
    split_kernel,
)
from clipjax.interop.open_clip.blocks import OPEN_CLIP, TIMM, block_leaves

IMAGE = "image_encoder"
TEXT = "text_encoder"


def image_leaves(spec: Mapping[str, Any]) -> list[Leaf]:
    """The vision transformer of OpenAI's CLIP, OpenCLIP's own models and CLIPA."""
    image = spec["image"]
    found = [
        leaf(f"{IMAGE}/patch_kernel", "visual.conv1.weight", CONV),
        leaf(f"{IMAGE}/class_embedding", "visual.class_embedding"),
        *norm_leaves(f"{IMAGE}/ln_post", "visual.ln_post"),
    ]
    if image.get("positions", "learned") == "learned":
        found.append(leaf(f"{IMAGE}/position_embedding", "visual.positional_embedding"))
    if image.get("pre_norm", True):
        found += norm_leaves(f"{IMAGE}/ln_pre", "visual.ln_pre")
    for i in range(image["depth"]):
        block = f"visual.transformer.resblocks.{i}"
        found += block_leaves(
            f"{IMAGE}/transformer/block_{i}", block, OPEN_CLIP, image["num_heads"]
        )
    if spec.get("image_projection", "linear") == "linear":
        found.append(leaf("image_projection/kernel", "visual.proj"))
    return found


def trunk_leaves(spec: Mapping[str, Any]) -> list[Leaf]:
    """timm's vision transformer with attention pooling, `visual.trunk.` in OpenCLIP: SigLIP."""
    image, trunk, head = spec["image"], "visual.trunk", f"{IMAGE}/map_head"
    num_heads, pool = image["num_heads"], f"{trunk}.attn_pool"
    found = [
        leaf(f"{IMAGE}/patch_kernel", f"{trunk}.patch_embed.proj.weight", CONV),
        leaf(f"{IMAGE}/patch_bias", f"{trunk}.patch_embed.proj.bias"),
        leaf(f"{IMAGE}/position_embedding", f"{trunk}.pos_embed", drop_axes(0)),
        *norm_leaves(f"{IMAGE}/ln_post", f"{trunk}.norm"),
        leaf(f"{head}/probe", f"{pool}.latent", drop_axes(0)),
        leaf(f"{head}/attention/q_kernel", f"{pool}.q.weight", split_kernel(num_heads)),
        leaf(f"{head}/attention/q_bias", f"{pool}.q.bias", split_bias(num_heads)),
        leaf(f"{head}/attention/kv_kernel", f"{pool}.kv.weight", fused_kernel(num_heads, 2)),
        leaf(f"{head}/attention/kv_bias", f"{pool}.kv.bias", fused_bias(num_heads, 2)),
        leaf(f"{head}/attention/out_kernel", f"{pool}.proj.weight", merge_kernel(num_heads)),
        leaf(f"{head}/attention/out_bias", f"{pool}.proj.bias"),
        *norm_leaves(f"{head}/norm", f"{pool}.norm"),
        *linear_leaves(f"{head}/mlp/fc", f"{pool}.mlp.fc1"),
        *linear_leaves(f"{head}/mlp/proj", f"{pool}.mlp.fc2"),
    ]
    for i in range(image["depth"]):
        block = f"{trunk}.blocks.{i}"
        found += block_leaves(f"{IMAGE}/transformer/block_{i}", block, TIMM, num_heads)
    return found


def text_leaves(spec: Mapping[str, Any], prefix: str) -> list[Leaf]:
    """OpenCLIP's text transformer; its names stand behind `text.` in a CustomTextCLIP."""
    text, projection = spec["text"], spec.get("text_projection", "linear")
    found = [
        leaf(f"{TEXT}/token_embedding", f"{prefix}token_embedding.weight"),
        leaf(f"{TEXT}/position_embedding", f"{prefix}positional_embedding"),
        *norm_leaves(f"{TEXT}/ln_final", f"{prefix}ln_final"),
    ]
    for i in range(text["depth"]):
        block = f"{prefix}transformer.resblocks.{i}"
        found += block_leaves(f"{TEXT}/transformer/block_{i}", block, OPEN_CLIP, text["num_heads"])
    if projection == "linear_bias":
        found += linear_leaves("text_projection", f"{prefix}text_projection")
    elif projection == "linear":
        found.append(leaf("text_projection/kernel", f"{prefix}text_projection"))
    return found
