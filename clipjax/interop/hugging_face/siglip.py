"""SiglipModel: its config and its tensors (arXiv:2303.15343, arXiv:2502.14786)."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face.transformer import (
    encoder,
    image_embeddings,
    text_embeddings,
    tower_config,
    tower_spec,
)
from clipjax.interop.hugging_face.transformer import ignored as ignored
from clipjax.interop.hugging_face.transformer import unused as unused
from clipjax.interop.leaves import SCALAR, Leaf, Rows, leaf, linear_leaves, map_head_leaves
from clipjax.interop.section import Section
from clipjax.models.zoo.parts import SQUASH_PREPROCESS

ARCHITECTURE = "SiglipModel"
IMAGE_PROCESSOR = "SiglipImageProcessor"
IMAGE_ENCODER = "vit"
TEXT_ENCODER = "bidirectional_transformer"
# Fields of the spec that config.json does not hold.
IN_OTHER_FILES = ("tokenizer", "preprocess")

DEFAULTS: dict[str, Any] = {}
_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
TEXT_DEFAULTS = {**_TOWER, "vocab_size": 32000, "max_position_embeddings": 64}
VISION_DEFAULTS = {
    **_TOWER,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "vision_use_head": True,
}


def spec_of(config: Section, text: Section, vision: Section) -> dict[str, Any]:
    """The model spec of a config; the tokenizer is that of the directory's files."""
    del config  # it holds the two objects only
    image = {
        "name": IMAGE_ENCODER,
        "patch_size": vision.side("patch_size"),
        "pooling": "map",
        "pre_norm": False,
        "patch_bias": True,
        "init_name": "xavier",
        **tower_spec(vision),
    }
    return model_spec(text, vision, image, vision.side("image_size"))


def model_spec(
    text: Section, vision: Section, image: dict[str, Any], image_size: int
) -> dict[str, Any]:
    """The model spec around an image tower, as SigLIP and both kinds of SigLIP 2 have it."""
    vision.must_be("num_channels", 3)
    vision.must_be("vision_use_head", True)
    text_tower, width = tower_spec(text), image["width"]
    if text.get("projection_size") is None:
        if text_tower["width"] != width:
            raise vision.error("hidden_size", f"{text_tower['width']}, as of text_config")
    else:
        text.must_be("projection_size", width)
    return {
        "name": "",
        "embed_dim": width,
        "image_size": image_size,
        "image": image,
        "text": {
            "name": TEXT_ENCODER,
            "vocab_size": text.integer("vocab_size"),
            "context_length": text.integer("max_position_embeddings"),
            "pooling": "last",
            "init_name": "xavier",
            **text_tower,
        },
        "image_projection": "none",
        "text_projection": "linear_bias",
        "tokenizer": {},
        "preprocess": SQUASH_PREPROCESS,
        "logit_scale": {"init": 10.0, "max": None},
        "logit_bias": -10.0,
        "source": "",
    }


def config_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a spec; what it cannot say is found by reading it again."""
    image, text = spec["image"], spec["text"]
    return {
        "text_config": {
            "model_type": "siglip_text_model",
            **tower_config(text),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "projection_size": spec["embed_dim"],
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            **tower_config(image),
            "image_size": spec["image_size"],
            "patch_size": image["patch_size"],
            "num_channels": 3,
        },
    }


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of tensors; the first third of the head's `in_proj` is q, the rest k and v."""
    head = "vision_model.head"
    kernel, bias = (f"{head}.attention.in_proj_{part}" for part in ("weight", "bias"))
    return (
        leaf("logit_scale", "logit_scale", SCALAR),
        leaf("logit_bias", "logit_bias", SCALAR),
        *image_embeddings(),
        leaf("image_encoder/patch_bias", "vision_model.embeddings.patch_embedding.bias"),
        *encoder("image_encoder", "vision_model", spec["image"]),
        *map_head_leaves(
            head,
            spec["image"]["num_heads"],
            probe="probe",
            q=(Rows(kernel, 0, 1, 3), Rows(bias, 0, 1, 3)),
            kv=(Rows(kernel, 1, 3, 3), Rows(bias, 1, 3, 3)),
            out="attention.out_proj",
            norm="layernorm",
        ),
        *text_embeddings(),
        *encoder("text_encoder", "text_model", spec["text"]),
        *linear_leaves("text_projection", "text_model.head"),
    )
