"""OpenCLIP's own transformers (OpenAI's names), timm's ViT for SigLIP, and XLM-RoBERTa."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face import bert
from clipjax.interop.leaves import (
    CONV,
    LINEAR,
    BlockNames,
    Leaf,
    drop_axes,
    leaf,
    linear_leaves,
    map_head_leaves,
    norm_leaves,
    stack_leaves,
)

OPEN_CLIP = BlockNames(
    ln_1="ln_1",
    ln_2="ln_2",
    qkv=("attn.in_proj_weight", "attn.in_proj_bias"),
    out="attn.out_proj",
    fc="mlp.c_fc",
    proj="mlp.c_proj",
)
TIMM = BlockNames(
    ln_1="norm1",
    ln_2="norm2",
    qkv=("attn.qkv.weight", "attn.qkv.bias"),
    out="attn.proj",
    fc="mlp.fc1",
    proj="mlp.fc2",
)
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
    found += stack_leaves(IMAGE, "visual.transformer.resblocks", OPEN_CLIP, image)
    if spec.get("image_projection", "linear") == "linear":
        found.append(leaf("image_projection/kernel", "visual.proj"))
    return found


def trunk_leaves(spec: Mapping[str, Any]) -> list[Leaf]:
    """timm's vision transformer with attention pooling, `visual.trunk.` in OpenCLIP: SigLIP."""
    image, trunk = spec["image"], "visual.trunk"
    return [
        leaf(f"{IMAGE}/patch_kernel", f"{trunk}.patch_embed.proj.weight", CONV),
        leaf(f"{IMAGE}/patch_bias", f"{trunk}.patch_embed.proj.bias"),
        leaf(f"{IMAGE}/position_embedding", f"{trunk}.pos_embed", drop_axes(0)),
        *norm_leaves(f"{IMAGE}/ln_post", f"{trunk}.norm"),
        *_attention_pool(image["num_heads"]),
        *stack_leaves(IMAGE, f"{trunk}.blocks", TIMM, image),
    ]


def perception_leaves(spec: Mapping[str, Any]) -> list[Leaf]:
    """timm's vision transformer of PE-Core, whose last layer is the projection."""
    image, trunk = spec["image"], "visual.trunk"
    found = [
        leaf(f"{IMAGE}/patch_kernel", f"{trunk}.patch_embed.proj.weight", CONV),
        leaf(f"{IMAGE}/position_embedding", f"{trunk}.pos_embed", drop_axes(0)),
        *norm_leaves(f"{IMAGE}/ln_pre", f"{trunk}.norm_pre"),
        *norm_leaves(f"{IMAGE}/ln_post", f"{trunk}.norm"),
        *_attention_pool(image.get("pool_heads", 8)),
        *stack_leaves(IMAGE, f"{trunk}.blocks", TIMM, image),
        *linear_leaves("image_projection", f"{trunk}.head"),
    ]
    if image.get("class_token", True):
        found.append(leaf(f"{IMAGE}/class_embedding", f"{trunk}.cls_token", drop_axes(0, 1)))
    return found


def _attention_pool(num_heads: int) -> tuple[Leaf, ...]:
    pool = "visual.trunk.attn_pool"
    return map_head_leaves(
        pool,
        num_heads,
        probe="latent",
        q=(f"{pool}.q.weight", f"{pool}.q.bias"),
        kv=(f"{pool}.kv.weight", f"{pool}.kv.bias"),
        out="proj",
        norm="norm",
    )


def text_leaves(spec: Mapping[str, Any], prefix: str) -> list[Leaf]:
    """OpenCLIP's text transformer; its names stand behind `text.` in a CustomTextCLIP."""
    text, projection = spec["text"], spec.get("text_projection", "linear")
    found = [
        leaf(f"{TEXT}/token_embedding", f"{prefix}token_embedding.weight"),
        leaf(f"{TEXT}/position_embedding", f"{prefix}positional_embedding"),
        *norm_leaves(f"{TEXT}/ln_final", f"{prefix}ln_final"),
    ]
    found += stack_leaves(TEXT, f"{prefix}transformer.resblocks", OPEN_CLIP, text)
    if projection == "linear_bias":
        found += linear_leaves("text_projection", f"{prefix}text_projection")
    elif projection == "linear":
        found.append(leaf("text_projection/kernel", f"{prefix}text_projection"))
    return found


def xlm_roberta_leaves(spec: Mapping[str, Any]) -> list[Leaf]:
    """XLM-RoBERTa by the names of transformers, and the projection that OpenCLIP puts behind it."""
    found = list(bert.leaves(TEXT, "text.transformer", spec["text"]))
    projection = spec.get("text_projection", "linear")
    if projection == "mlp":
        found.append(leaf("text_projection/fc/kernel", "text.proj.0.weight", LINEAR))
        found.append(leaf("text_projection/proj/kernel", "text.proj.2.weight", LINEAR))
    elif projection == "linear":
        found.append(leaf("text_projection/kernel", "text.proj.weight", LINEAR))
    return found
