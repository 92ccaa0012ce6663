"""Chinese-CLIP (arXiv:2211.01335): CLIP's image towers, Chinese RoBERTa as the text tower.

The vocabulary is BERT-base-Chinese's, 21,128 pieces, and is not shipped:
`config.model.tokenizer.model` is the path of its vocab.txt.
"""

from typing import Any

from clipjax.models.zoo.parts import OPENAI_LOGIT_SCALE, OPENAI_PREPROCESS

_BASE, _LARGE = (12, 768, 12), (24, 1024, 16)
# name: (pixels, patch, image (depth, width, heads), text (depth, width, heads), embed)
_SIZES = {
    "chinese-clip-vit-base-patch16": (224, 16, _BASE, _BASE, 512),
    "chinese-clip-vit-large-patch14": (224, 14, _LARGE, _BASE, 768),
    "chinese-clip-vit-large-patch14-336px": (336, 14, _LARGE, _BASE, 768),
    "chinese-clip-vit-huge-patch14": (224, 14, (32, 1280, 16), _LARGE, 1024),
}


def _tower(sizes: tuple[int, int, int]) -> dict[str, Any]:
    depth, width, num_heads = sizes
    return {"width": width, "depth": depth, "num_heads": num_heads, "mlp_dim": 4 * width}


def _row(name: str) -> dict[str, Any]:
    pixels, patch, image, text, embed_dim = _SIZES[name]
    return {
        "name": name,
        "embed_dim": embed_dim,
        "image_size": pixels,
        "image": {
            "name": "vit",
            "patch_size": patch,
            "pooling": "cls",
            "activation": "quick_gelu",
            "layer_norm_eps": 1e-5,
            **_tower(image),
        },
        "text": {
            "name": "bert",
            "vocab_size": 21_128,
            "context_length": 52,
            "activation": "gelu",
            "layer_norm_eps": 1e-12,
            "pooling": "cls",
            **_tower(text),
        },
        "tokenizer": {"name": "wordpiece", "shipped": False},
        "preprocess": {**OPENAI_PREPROCESS, "resize": "squash"},
        "logit_scale": OPENAI_LOGIT_SCALE,
        "logit_bias": None,
        "source": "arXiv:2211.01335, OFA-Sys/Chinese-CLIP",
    }


ROWS: dict[str, dict[str, Any]] = {name: _row(name) for name in _SIZES}
