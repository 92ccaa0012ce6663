"""PE-Core, the Perception Encoder's contrastive models, named as OpenCLIP names them.

A ViT with learned and rotary positions, pooled by attention, beside CLIP's text transformer.
"""

from typing import Any

from clipjax.models.zoo.parts import HALF, OPENAI_LOGIT_SCALE, causal_text

_SMALL, _LARGE = (12, 512, 8), (24, 1024, 16)
# name: (pixels, patch, image (depth, width, heads, MLP), text (depth, width, heads), context)
_SIZES = {
    "PE-Core-T-16-384": (384, 16, (12, 192, 3, 768), _SMALL, 32),
    "PE-Core-S-16-384": (384, 16, (12, 384, 6, 1536), _SMALL, 32),
    "PE-Core-B-16": (224, 16, (12, 768, 12, 3072), _LARGE, 32),
    "PE-Core-L-14-336": (336, 14, (24, 1024, 16, 4096), _LARGE, 32),
    "PE-Core-bigG-14-448": (448, 14, (50, 1536, 16, 8960), (24, 1280, 20), 72),
}


def _row(name: str) -> dict[str, Any]:
    pixels, patch, (depth, width, heads, mlp_dim), text, context_length = _SIZES[name]
    text_depth, text_width, text_heads = text
    row = causal_text(depth=text_depth, width=text_width, num_heads=text_heads, activation="gelu")
    return {
        "name": name,
        "embed_dim": text_width,
        "image_size": pixels,
        "image": {
            "name": "perception_encoder",
            "patch_size": patch,
            "width": width,
            "depth": depth,
            "num_heads": heads,
            "mlp_dim": mlp_dim,
            "class_token": name != "PE-Core-bigG-14-448",
            "pool_heads": 8,
            "rotary_side": pixels // patch,
            "activation": "gelu",
            "layer_norm_eps": 1e-5,
        },
        "text": {**row, "context_length": context_length},
        "image_projection": "linear_bias",
        "tokenizer": {"name": "clip_bpe"},
        "preprocess": {"resize": "squash", "interpolation": "bilinear", "mean": HALF, "std": HALF},
        "logit_scale": OPENAI_LOGIT_SCALE,
        "logit_bias": None,
        "source": "arXiv:2504.13181, facebookresearch/perception_models",
    }


ROWS: dict[str, dict[str, Any]] = {name: _row(name) for name in _SIZES}
