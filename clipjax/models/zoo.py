"""The named models: one table, each row with its sizes and its source.

A spec is plain data. It travels with every checkpoint (the model contract), so that an evaluation
needs nothing else to build the same model.
"""

from typing import Any

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def _openai_vit(
    name: str,
    *,
    patch_size: int,
    width: int,
    depth: int,
    text_width: int,
    embed_dim: int,
    image_size: int = 224,
    activation: str = "quick_gelu",
    head_dim: int = 64,
    source: str = "arXiv:2103.00020",
) -> dict[str, Any]:
    """A row of OpenAI's ViTs; OpenCLIP trains the same shapes with the exact GELU."""
    common = {"activation": activation, "layer_norm_eps": 1e-5}
    return {
        "name": name,
        "embed_dim": embed_dim,
        "image_size": image_size,
        "image": {
            "name": "vit",
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "num_heads": width // head_dim,
            "mlp_dim": 4 * width,
            "pooling": "cls",
            **common,
        },
        "text": {
            "name": "causal_transformer",
            "vocab_size": 49408,
            "context_length": 77,
            "width": text_width,
            "depth": 12,
            "num_heads": text_width // 64,
            "mlp_dim": 4 * text_width,
            "pooling": "eot",
            **common,
        },
        "tokenizer": {"name": "clip_bpe"},
        "preprocess": {
            "resize": "shortest",
            "interpolation": "bicubic",
            "mean": OPENAI_MEAN,
            "std": OPENAI_STD,
        },
        "logit_scale": {"init": 1 / 0.07, "max": 100.0},
        "logit_bias": None,
        "source": source,
    }


_ROWS = (
    _openai_vit("ViT-B-32", patch_size=32, width=768, depth=12, text_width=512, embed_dim=512),
    _openai_vit("ViT-B-16", patch_size=16, width=768, depth=12, text_width=512, embed_dim=512),
    _openai_vit("ViT-L-14", patch_size=14, width=1024, depth=24, text_width=768, embed_dim=768),
    _openai_vit(
        "ViT-L-14-336",
        patch_size=14,
        width=1024,
        depth=24,
        text_width=768,
        embed_dim=768,
        image_size=336,
    ),
)

MODELS: dict[str, dict[str, Any]] = {row["name"]: row for row in _ROWS}
