"""Models with BERT's kind of text tower: ALIGN, and OpenCLIP's multilingual XLM-RoBERTa."""

from typing import Any

from clipjax.models.zoo import clip_vit
from clipjax.models.zoo.parts import HALF

# name: (ViT row, depth, width, heads)
_XLM_ROBERTA = {
    "xlm-roberta-base-ViT-B-32": ("ViT-B-32", 12, 768, 12),
    "xlm-roberta-large-ViT-H-14": ("ViT-H-14", 24, 1024, 16),
}


def _xlm_roberta(name: str, base: str, depth: int, width: int, num_heads: int) -> dict[str, Any]:
    return {
        **clip_vit.ROWS[base],
        "name": name,
        "text": {
            "name": "bert",
            "vocab_size": 250002,
            "context_length": 77,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": 4 * width,
            "activation": "gelu",
            "layer_norm_eps": 1e-5,
            "pad_id": 1,
            "num_positions": 514,
            "position_offset": 2,
            "num_segments": 1,
            "pooling": "mean",
        },
        "text_projection": "mlp",
        # The file is XLM-RoBERTa's and is not shipped: config.model.tokenizer.model is its path.
        "tokenizer": {
            "name": "tokenizer_json",
            "pad_id": 1,
            "cleaning": ("fix_text", "collapse_whitespace"),
        },
        "source": "mlfoundations/open_clip, arXiv:1911.02116",
    }


_ALIGN = {
    "name": "align-base",
    "embed_dim": 640,
    "image_size": 289,
    # EfficientNet-B7; its last stage is as wide as the embedding.
    "image": {
        "name": "efficientnet",
        "width_factor": 2.0,
        "depth_factor": 3.1,
        "drop_connect": 0.2,
    },
    "text": {
        "name": "bert",
        "vocab_size": 30522,
        "context_length": 64,
        "width": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_dim": 3072,
        "activation": "gelu",
        "layer_norm_eps": 1e-12,
        "pooling": "cls",
    },
    "image_projection": "none",
    "text_projection": "linear_bias",
    "tokenizer": {"name": "wordpiece"},
    # The published pipeline squashes to 346 pixels and takes the middle 289.
    "preprocess": {
        "resize": "squash",
        "interpolation": "bilinear",
        "crop_fraction": 289 / 346,
        "mean": HALF,
        "std": HALF,
    },
    # The published parameter is the temperature itself, 1 at the start and not clamped.
    "logit_scale": {"init": 1.0, "max": None},
    "logit_bias": None,
    "source": "arXiv:2102.05918, kakaobrain/align-base in transformers",
}

ROWS: dict[str, dict[str, Any]] = {
    "align-base": _ALIGN,
    **{name: _xlm_roberta(name, *sizes) for name, sizes in _XLM_ROBERTA.items()},
}
