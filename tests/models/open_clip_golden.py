"""Reads the golden arrays of open_clip, with the spec and the weights that belong to them."""

import json
from pathlib import Path

import numpy as np
import seeded
from open_clip_names import convert

from clipjax.config import merge
from clipjax.models import MODELS

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
SIGLIP = {
    field: MODELS["siglip-b-16-224"][field]
    for field in ("image_projection", "text_projection", "logit_bias")
} | {
    "image": {"pooling": "map", "pre_norm": False, "patch_bias": True},
    "text": {"name": "bidirectional_transformer", "pooling": "last"},
}
for tower in ("image", "text"):
    SIGLIP[tower] |= {"activation": "gelu_tanh", "layer_norm_eps": 1e-6, "init_name": "xavier"}


def spec_of(config):
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    common = {"activation": activation, "layer_norm_eps": 1e-5}
    image, text = config["vision_cfg"], config["text_cfg"]
    spec = {
        "embed_dim": config["embed_dim"],
        "image_size": image["image_size"],
        "image": {
            "name": "vit",
            "patch_size": image.get("patch_size"),
            "width": image["width"],
            "depth": image["layers"],
            "num_heads": image["width"] // image["head_width"],
            "mlp_dim": 4 * image["width"],
            "pooling": "cls",
            **common,
        },
        "text": {
            "name": "causal_transformer",
            "vocab_size": text["vocab_size"],
            "context_length": text["context_length"],
            "width": text["width"],
            "depth": text["layers"],
            "num_heads": text["heads"],
            "mlp_dim": 4 * text["width"],
            "pooling": "eot",
            **common,
        },
        "logit_scale": {"init": 1 / 0.07, "max": 100.0},
        "logit_bias": None,
    }
    if "patch_size" not in image:
        spec["image"] = {
            "name": "modified_resnet",
            "layers": image["layers"],
            "width": image["width"],
            "num_heads": image["width"] * 32 // image["head_width"],
            "output_dim": config["embed_dim"],
        }
        spec["image_projection"] = "none"
    if config.get("pe_core"):
        del spec["image"]["pooling"]
        spec["image"] |= {"name": "perception_encoder", "pool_heads": 8}
        spec["image_projection"] = "linear_bias"
    if image.get("pool_type") == "avg":
        spec["image"] |= {"pooling": "patch_mean", "pre_norm": False}
        spec["text"] |= {"name": "bidirectional_transformer", "pooling": "last"}
    return merge(spec, SIGLIP) if config.get("siglip") else spec


def relative_error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def load(name):
    """(spec, golden arrays, our parameters, wanted gradients, images, tokens)"""
    golden = dict(np.load(GOLDEN / f"open_clip_{name}.npz"))
    spec = spec_of(json.loads(str(golden["config"])))
    prefix = "gradient/"
    gradients = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    weights = {name: seeded.weight(name, g.shape) for name, g in gradients.items()}
    images = seeded.images(4, spec["image_size"])
    tokens = seeded.tokens(4, spec["text"]["context_length"], spec["text"]["vocab_size"])
    return spec, golden, convert(weights, spec), convert(gradients, spec), images, tokens
