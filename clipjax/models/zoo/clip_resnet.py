"""CLIP with modified ResNets, sizes of OpenAI's.

All published weights (OpenAI's, and OpenCLIP's on YFCC-15M and CC12M) have the quick GELU in the
text tower; `NAME-quickgelu` is OpenCLIP's other name for the same row.
"""

from typing import Any

from clipjax.models.zoo.parts import OPENAI_LOGIT_SCALE, OPENAI_PREPROCESS, causal_text

# name: (pixels, (bottlenecks a stage), width, heads of the pooling, text width, embed)
_SIZES = {
    "RN50": (224, (3, 4, 6, 3), 64, 32, 512, 1024),
    "RN101": (224, (3, 4, 23, 3), 64, 32, 512, 512),
    "RN50x4": (288, (4, 6, 10, 6), 80, 40, 640, 640),
    "RN50x16": (384, (6, 8, 18, 8), 96, 48, 768, 768),
    "RN50x64": (448, (3, 15, 36, 10), 128, 64, 1024, 1024),
}


def _row(name: str, base: str) -> dict[str, Any]:
    pixels, layers, width, num_heads, text_width, embed_dim = _SIZES[base]
    return {
        "name": name,
        "embed_dim": embed_dim,
        "image_size": pixels,
        "image": {
            "name": "modified_resnet",
            "layers": list(layers),
            "width": width,
            "num_heads": num_heads,
            "output_dim": embed_dim,
        },
        "text": causal_text(
            depth=12, width=text_width, num_heads=text_width // 64, activation="quick_gelu"
        ),
        # The attention pooling projects.
        "image_projection": "none",
        "tokenizer": {"name": "clip_bpe"},
        "preprocess": OPENAI_PREPROCESS,
        "logit_scale": OPENAI_LOGIT_SCALE,
        "logit_bias": None,
        "source": "arXiv:2103.00020, openai/CLIP",
    }


ROWS: dict[str, dict[str, Any]] = {
    name: _row(name, base) for base in _SIZES for name in (base, f"{base}-quickgelu")
}
