"""CLIP with vision transformers: OpenAI's and OpenCLIP's, named as OpenCLIP names them.

`NAME` has the exact GELU (LAION, DataComp, CommonPool weights), `NAME-quickgelu` the same sizes
with `x sigmoid(1.702 x)` (OpenAI's own weights, MetaCLIP, DFN). They load each other's weights
without an error and compute something else, so the name has to be the right one.
"""

from typing import Any

from clipjax.models.zoo.parts import (
    HALF,
    OPENAI_LOGIT_SCALE,
    OPENAI_PREPROCESS,
    causal_text,
)

_CLIP = "arXiv:2103.00020, openai/CLIP"
_OPEN_CLIP = "arXiv:2212.07143, mlfoundations/open_clip"
_DFN = "arXiv:2309.17425, mlfoundations/open_clip"
_META = "arXiv:2309.16671, mlfoundations/open_clip"

# name: (pixels, patch, image (depth, width, heads, MLP), text (depth, width, heads), embed, source)
_SIZES = {
    "ViT-S-32": (224, 32, (12, 384, 6, 1536), (12, 384, 6), 384, _OPEN_CLIP),
    "ViT-S-16": (224, 16, (12, 384, 6, 1536), (12, 384, 6), 384, _OPEN_CLIP),
    "ViT-B-32": (224, 32, (12, 768, 12, 3072), (12, 512, 8), 512, _OPEN_CLIP),
    "ViT-B-32-256": (256, 32, (12, 768, 12, 3072), (12, 512, 8), 512, _OPEN_CLIP),
    "ViT-B-16": (224, 16, (12, 768, 12, 3072), (12, 512, 8), 512, _OPEN_CLIP),
    "ViT-B-16-plus": (224, 16, (12, 896, 14, 3584), (12, 640, 10), 640, _OPEN_CLIP),
    "ViT-B-16-plus-240": (240, 16, (12, 896, 14, 3584), (12, 640, 10), 640, _OPEN_CLIP),
    "ViT-L-14": (224, 14, (24, 1024, 16, 4096), (12, 768, 12), 768, _OPEN_CLIP),
    "ViT-L-14-336": (336, 14, (24, 1024, 16, 4096), (12, 768, 12), 768, _OPEN_CLIP),
    "ViT-H-14": (224, 14, (32, 1280, 16, 5120), (24, 1024, 16), 1024, _OPEN_CLIP),
    "ViT-H-14-378": (378, 14, (32, 1280, 16, 5120), (24, 1024, 16), 1024, _OPEN_CLIP),
    "ViT-g-14": (224, 14, (40, 1408, 16, 6144), (24, 1024, 16), 1024, _OPEN_CLIP),
    "ViT-bigG-14": (224, 14, (48, 1664, 16, 8192), (32, 1280, 20), 1280, _OPEN_CLIP),
    "ViT-e-14": (224, 14, (56, 1792, 16, 15360), (36, 1280, 20), 1280, _OPEN_CLIP),
}
_QUICK_GELU = {
    "ViT-B-32": _CLIP,
    "ViT-B-16": _CLIP,
    "ViT-L-14": _CLIP,
    "ViT-L-14-336": _CLIP,
    "ViT-H-14": _META,
    "ViT-H-14-378": _DFN,
    "ViT-bigG-14": _META,
}


def _row(name: str, base: str, activation: str, source: str) -> dict[str, Any]:
    pixels, patch, (depth, width, heads, mlp_dim), text, embed_dim, _ = _SIZES[base]
    text_depth, text_width, text_heads = text
    return {
        "name": name,
        "embed_dim": embed_dim,
        "image_size": pixels,
        "image": {
            "name": "vit",
            "patch_size": patch,
            "width": width,
            "depth": depth,
            "num_heads": heads,
            "mlp_dim": mlp_dim,
            "pooling": "cls",
            "activation": activation,
            "layer_norm_eps": 1e-5,
        },
        "text": causal_text(
            depth=text_depth, width=text_width, num_heads=text_heads, activation=activation
        ),
        "tokenizer": {"name": "clip_bpe"},
        "preprocess": OPENAI_PREPROCESS,
        "logit_scale": OPENAI_LOGIT_SCALE,
        "logit_bias": None,
        "source": source,
    }


ROWS: dict[str, dict[str, Any]] = {
    **{name: _row(name, name, "gelu", sizes[-1]) for name, sizes in _SIZES.items()},
    **{
        f"{name}-quickgelu": _row(f"{name}-quickgelu", name, "quick_gelu", source)
        for name, source in _QUICK_GELU.items()
    },
}
# DFN's two H/14 saw images squashed to a square; MetaCLIP's and all others crop one.
_SQUASHED = {**OPENAI_PREPROCESS, "resize": "squash"}
ROWS["ViT-H-14-378-quickgelu"] = {**ROWS["ViT-H-14-378-quickgelu"], "preprocess": _SQUASHED}
ROWS["ViT-H-14-quickgelu-dfn"] = {
    **ROWS["ViT-H-14-quickgelu"],
    "name": "ViT-H-14-quickgelu-dfn",
    "preprocess": _SQUASHED,
    "source": _DFN,
}
# The one LAION-2B model that was trained on pixels in [-1, 1] (weights laion2b_s32b_b82k).
ROWS["ViT-L-14-laion2b"] = {
    **ROWS["ViT-L-14"],
    "name": "ViT-L-14-laion2b",
    "preprocess": {**OPENAI_PREPROCESS, "mean": HALF, "std": HALF},
}
