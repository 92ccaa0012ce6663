"""SigLIP and SigLIP 2: attention-pooled ViT, bidirectional text, sigmoid loss.

The activation is big_vision's, where the weights come from: tanh-GELU throughout. OpenCLIP runs
some of these weights with the exact GELU (docs/models.md).
"""

from typing import Any

from clipjax.models.zoo.parts import SQUASH_PREPROCESS

_SIGLIP = "arXiv:2303.15343, google-research/big_vision"
_SIGLIP2 = "arXiv:2502.14786, google-research/big_vision"

# name: (depth, width, heads, MLP), the same for both towers but in g-opt, which has So400m's text.
_TOWERS = {
    "b": (12, 768, 12, 3072),
    "l": (24, 1024, 16, 4096),
    "so400m": (27, 1152, 16, 4304),
    "g-opt": (40, 1536, 16, 6144),
}

# English: c4_en with 32,000 pieces; i18n: mC4 with 250,000; SigLIP 2: Gemma's 256,000. The `.model`
# files are not shipped: a config gives config.model.tokenizer.model the path of its copy. Captions
# are cleaned as in transformers; the code that trained the models lower-cases ASCII letters only.
_C4 = {
    "name": "sentencepiece",
    "cleaning": ("lower_each_character", "strip_punctuation", "collapse_whitespace"),
    "end_id": 1,
    "pad_id": 1,
}
_GEMMA = {**_C4, "cleaning": ("lower_each_character",), "pad_id": 0}

# name: (tower, patch, pixels, context)
_ENGLISH = {
    "siglip-b-16-224": ("b", 16, 224, 64),
    "siglip-b-16-256": ("b", 16, 256, 64),
    "siglip-b-16-384": ("b", 16, 384, 64),
    "siglip-b-16-512": ("b", 16, 512, 64),
    "siglip-l-16-256": ("l", 16, 256, 64),
    "siglip-l-16-384": ("l", 16, 384, 64),
    "siglip-so400m-14-224": ("so400m", 14, 224, 16),
    "siglip-so400m-14-384": ("so400m", 14, 384, 64),
}
_MULTILINGUAL = {
    "siglip-b-16-256-i18n": ("b", 16, 256, 64),
    "siglip-so400m-16-256-i18n": ("so400m", 16, 256, 64),
}
_SECOND = {
    "siglip2-b-32-256": ("b", 32, 256, 64),
    "siglip2-b-16-224": ("b", 16, 224, 64),
    "siglip2-b-16-256": ("b", 16, 256, 64),
    "siglip2-b-16-384": ("b", 16, 384, 64),
    "siglip2-b-16-512": ("b", 16, 512, 64),
    "siglip2-l-16-256": ("l", 16, 256, 64),
    "siglip2-l-16-384": ("l", 16, 384, 64),
    "siglip2-l-16-512": ("l", 16, 512, 64),
    "siglip2-so400m-14-224": ("so400m", 14, 224, 64),
    "siglip2-so400m-14-384": ("so400m", 14, 384, 64),
    "siglip2-so400m-16-256": ("so400m", 16, 256, 64),
    "siglip2-so400m-16-384": ("so400m", 16, 384, 64),
    "siglip2-so400m-16-512": ("so400m", 16, 512, 64),
    "siglip2-g-opt-16-256": ("g-opt", 16, 256, 64),
    "siglip2-g-opt-16-384": ("g-opt", 16, 384, 64),
}


def _tower(size: str) -> dict[str, Any]:
    depth, width, num_heads, mlp_dim = _TOWERS[size]
    return {
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "activation": "gelu_tanh",
        "layer_norm_eps": 1e-6,
        "init_name": "xavier",
    }


def _row(
    name: str,
    sizes: tuple[str, int, int, int],
    *,
    vocab_size: int,
    tokenizer: dict[str, Any],
    source: str,
) -> dict[str, Any]:
    tower, patch_size, pixels, context_length = sizes
    return {
        "name": name,
        "embed_dim": _TOWERS[tower][1],
        "image_size": pixels,
        "image": {
            "name": "vit",
            "patch_size": patch_size,
            "pooling": "map",
            "pre_norm": False,
            "patch_bias": True,
            **_tower(tower),
        },
        "text": {
            "name": "bidirectional_transformer",
            "vocab_size": vocab_size,
            "context_length": context_length,
            "pooling": "last",
            **_tower("so400m" if tower == "g-opt" else tower),
        },
        "image_projection": "none",
        "text_projection": "linear_bias",
        "tokenizer": tokenizer,
        "preprocess": SQUASH_PREPROCESS,
        # Not clamped: So400m-384's published scale is 112.33.
        "logit_scale": {"init": 10.0, "max": None},
        "logit_bias": -10.0,
        "source": source,
    }


def _rows(table: dict[str, tuple[str, int, int, int]], **common: Any) -> dict[str, dict[str, Any]]:
    return {name: _row(name, sizes, **common) for name, sizes in table.items()}


ROWS: dict[str, dict[str, Any]] = {
    **_rows(_ENGLISH, vocab_size=32_000, tokenizer=_C4, source=_SIGLIP),
    **_rows(_MULTILINGUAL, vocab_size=250_000, tokenizer=_C4, source=_SIGLIP),
    **_rows(_SECOND, vocab_size=256_000, tokenizer=_GEMMA, source=_SIGLIP2),
}
# OpenCLIP's file of this model has no text projection (proj_type none).
ROWS["siglip-so400m-16-256-i18n"]["text_projection"] = "none"
