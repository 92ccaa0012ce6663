"""CLIPA and OpenVision: fixed positions, mean of the patches, bidirectional text.

Activation and epsilon are those of the JAX code that trained them (tanh-GELU, 1e-6). OpenCLIP runs
CLIPA's weights with the exact GELU and 1e-5 (docs/models.md).
"""

from typing import Any

from clipjax.models.zoo.parts import OPENAI_LOGIT_SCALE

# BERT-base-uncased's 30,522 pieces in a table of 32,000 rows, as OpenCLIP feeds the published
# weights. The code that trained them has one word more in a caption that is cut (`end_token` none).
_TOKENIZER = {
    "name": "wordpiece",
    "end_token": "blank",
    "cleaning": ("fix_text", "collapse_whitespace"),
}
_CLIPA = "arXiv:2306.15658, UCSC-VLAA/CLIPA"
_OPENVISION = "arXiv:2505.04601, UCSC-VLAA/OpenVision"

# name: (image (depth, width, heads, MLP), text (depth, width, heads, MLP), embed)
_SIZES = {
    "tiny": ((12, 192, 3, 768), (12, 192, 3, 768), 192),
    "small": ((12, 384, 6, 1536), (12, 384, 6, 1536), 384),
    "base": ((12, 768, 12, 3072), (12, 512, 8, 2048), 512),
    "large": ((24, 1024, 16, 4096), (12, 768, 12, 3072), 768),
    "so400m": ((27, 1152, 16, 4304), (27, 1152, 16, 4304), 1152),
    "huge": ((32, 1280, 16, 5120), (24, 1024, 16, 4096), 1024),
    "bigG": ((48, 1664, 16, 8192), (32, 1280, 20, 5120), 1280),
}
_CLIPA_SIZES = {"L": "large", "H": "huge", "bigG": "bigG"}
# size: (patches, pixels)
_OPENVISION_SIZES = {
    "tiny": ((16, 8), (160, 224, 384)),
    "small": ((16, 8), (160, 224, 384)),
    "base": ((16, 8), (160, 224, 384)),
    "large": ((14,), (84, 224, 336)),
    "so400m": ((14,), (84, 224, 384)),
    "huge": ((14,), (84, 224)),
}


def _tower(sizes: tuple[int, int, int, int]) -> dict[str, Any]:
    depth, width, num_heads, mlp_dim = sizes
    return {
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "activation": "gelu_tanh",
        "layer_norm_eps": 1e-6,
    }


def _row(
    name: str, size: str, *, patch_size: int, pixels: int, context_length: int, source: str
) -> dict[str, Any]:
    image, text, embed_dim = _SIZES[size]
    return {
        "name": name,
        "embed_dim": embed_dim,
        "image_size": pixels,
        "image": {
            "name": "vit",
            "patch_size": patch_size,
            "pooling": "patch_mean",
            "positions": "sincos2d",
            "pre_norm": False,
            "init_name": "xavier",
            **_tower(image),
        },
        "text": {
            "name": "bidirectional_transformer",
            "vocab_size": 32_000,
            "context_length": context_length,
            "pooling": "last",
            "init_name": "openai_text",
            **_tower(text),
        },
        "tokenizer": _TOKENIZER,
        "preprocess": {
            "resize": "squash",
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        },
        "logit_scale": OPENAI_LOGIT_SCALE,
        "logit_bias": None,
        "source": source,
    }


def _clipa() -> dict[str, dict[str, Any]]:
    rows = {}
    for letter, size in _CLIPA_SIZES.items():
        for pixels in (224, 336):
            name = f"ViT-{letter}-14-CLIPA" + ("" if pixels == 224 else f"-{pixels}")
            rows[name] = _row(
                name, size, patch_size=14, pixels=pixels, context_length=32, source=_CLIPA
            )
    return rows


def _openvision() -> dict[str, dict[str, Any]]:
    rows = {}
    for size, (patches, all_pixels) in _OPENVISION_SIZES.items():
        for patch in patches:
            for pixels in all_pixels:
                name = f"openvision-vit-{size}-patch{patch}-{pixels}"
                rows[name] = _row(
                    name,
                    size,
                    patch_size=patch,
                    pixels=pixels,
                    context_length=80,
                    source=_OPENVISION,
                )
    return rows


ROWS: dict[str, dict[str, Any]] = {**_clipa(), **_openvision()}
