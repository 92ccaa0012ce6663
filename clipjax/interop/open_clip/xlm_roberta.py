"""transformers' XLM-RoBERTa, which OpenCLIP wraps as the text tower of its multilingual models."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.leaves import (
    LINEAR,
    Leaf,
    leaf,
    merge_kernel,
    qkv_bias_leaf,
    qkv_kernel_leaf,
)
from clipjax.interop.open_clip.blocks import linear_leaves, norm_leaves
from clipjax.interop.open_clip.vit import TEXT

EMBEDDINGS = {
    "token_embedding": "word_embeddings",
    "position_embedding": "position_embeddings",
    "segment_embedding": "token_type_embeddings",
}


def xlm_roberta_leaves(spec: Mapping[str, Any]) -> list[Leaf]:
    """Embeddings, post-norm blocks, and the projection of two layers."""
    text, embeddings = spec["text"], "text.transformer.embeddings"
    found = [
        leaf(f"{TEXT}/{ours}", f"{embeddings}.{theirs}.weight")
        for ours, theirs in EMBEDDINGS.items()
    ]
    found += norm_leaves(f"{TEXT}/ln_embedding", f"{embeddings}.LayerNorm")
    for i in range(text["depth"]):
        found += _block(
            f"{TEXT}/transformer/block_{i}",
            f"text.transformer.encoder.layer.{i}",
            text["num_heads"],
        )
    projection = spec.get("text_projection", "linear")
    if projection == "mlp":
        found.append(leaf("text_projection/fc/kernel", "text.proj.0.weight", LINEAR))
        found.append(leaf("text_projection/proj/kernel", "text.proj.2.weight", LINEAR))
    elif projection == "linear":
        found.append(leaf("text_projection/kernel", "text.proj.weight", LINEAR))
    return found


def _block(ours: str, theirs: str, num_heads: int) -> list[Leaf]:
    inside = f"{theirs}.attention.self"
    parts = [f"{inside}.{part}" for part in ("query", "key", "value")]
    out = f"{theirs}.attention.output"
    attention = f"{ours}/attention"
    return [
        qkv_kernel_leaf(f"{attention}/qkv_kernel", [f"{x}.weight" for x in parts], num_heads),
        qkv_bias_leaf(f"{attention}/qkv_bias", [f"{x}.bias" for x in parts], num_heads),
        leaf(f"{attention}/out_kernel", f"{out}.dense.weight", merge_kernel(num_heads)),
        leaf(f"{attention}/out_bias", f"{out}.dense.bias"),
        *norm_leaves(f"{ours}/ln_1", f"{out}.LayerNorm"),
        *linear_leaves(f"{ours}/mlp/fc", f"{theirs}.intermediate.dense"),
        *linear_leaves(f"{ours}/mlp/proj", f"{theirs}.output.dense"),
        *norm_leaves(f"{ours}/ln_2", f"{theirs}.output.LayerNorm"),
    ]
