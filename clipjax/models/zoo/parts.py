"""Parts that the rows of several families share."""

from typing import Any

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

OPENAI_PREPROCESS = {
    "resize": "shortest",
    "interpolation": "bicubic",
    "mean": OPENAI_MEAN,
    "std": OPENAI_STD,
}
SQUASH_PREPROCESS = {"resize": "squash", "interpolation": "bicubic", "mean": HALF, "std": HALF}

# Multiplicative: the parameter is its logarithm, clamped after each step unless max is None.
OPENAI_LOGIT_SCALE = {"init": 1 / 0.07, "max": 100.0}


def causal_text(*, depth: int, width: int, num_heads: int, activation: str) -> dict[str, Any]:
    """The text tower of OpenAI's CLIP and of OpenCLIP, at any size."""
    return {
        "name": "causal_transformer",
        "vocab_size": 49408,
        "context_length": 77,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": 4 * width,
        "pooling": "eot",
        "activation": activation,
        "layer_norm_eps": 1e-5,
    }
