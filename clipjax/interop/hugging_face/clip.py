"""CLIPModel: its config and its tensors (arXiv:2103.00020)."""

import math
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
from clipjax.interop.leaves import LINEAR, Leaf, leaf, norm_leaves
from clipjax.interop.section import Section
from clipjax.models.zoo.parts import OPENAI_LOGIT_SCALE, OPENAI_PREPROCESS

ARCHITECTURE = "CLIPModel"
IMAGE_PROCESSOR = "CLIPImageProcessor"
IMAGE_ENCODER = "vit"
TEXT_ENCODER = "causal_transformer"
# Fields of the spec that config.json does not hold.
IN_OTHER_FILES = ("tokenizer", "preprocess")

# What a config.json of transformers means by leaving a field out.
DEFAULTS = {"projection_dim": 512, "logit_scale_init_value": 2.6592}
_TOWER = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT_DEFAULTS = {
    **_TOWER,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VISION_DEFAULTS = {
    **_TOWER,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
# Configs from before transformers 4.27 say 2 and mean: the largest id ends the text.
LEGACY_END_ID = 2


def spec_of(config: Section, text: Section, vision: Section) -> dict[str, Any]:
    """The model spec of a config; tokenizer and preprocessing are OpenAI's."""
    # Only the towers' models by themselves read their own projection_dim; CLIPModel reads its own.
    text.ignore(["projection_dim"])
    vocab_size = text.integer("vocab_size")
    eos_id, pooled_at = text.get("eos_token_id"), {}
    if eos_id not in (LEGACY_END_ID, vocab_size - 1):
        # Ids above the end were added: the first end is looked for, and not the largest id.
        pooled_at = {"eot_id": text.integer("eos_token_id")}
        if pooled_at["eot_id"] >= vocab_size:
            raise text.error(
                "eos_token_id", f"an id below vocab_size = {vocab_size}, or {LEGACY_END_ID}"
            )
    return {
        "name": "",
        "embed_dim": config.integer("projection_dim"),
        "image_size": vision.side("image_size"),
        "image": image_spec(vision),
        "text": {
            "name": TEXT_ENCODER,
            "vocab_size": vocab_size,
            "context_length": text.integer("max_position_embeddings"),
            "pooling": "eot",
            **pooled_at,
            **tower_spec(text),
        },
        "tokenizer": {"name": "clip_bpe"},
        "preprocess": OPENAI_PREPROCESS,
        "logit_scale": scale_spec(config),
        "logit_bias": None,
        "source": "",
    }


def image_spec(vision: Section) -> dict[str, Any]:
    """CLIP's image tower, which other families have as well."""
    vision.ignore(["projection_dim"])
    vision.must_be("num_channels", 3)
    return {
        "name": IMAGE_ENCODER,
        "patch_size": vision.side("patch_size"),
        "pooling": "cls",
        **tower_spec(vision),
    }


def scale_spec(config: Section) -> dict[str, Any]:
    """The scale at the start; the file holds its logarithm, and OpenAI's rounded."""
    start = config.number("logit_scale_init_value")
    is_openai = math.isclose(start, math.log(OPENAI_LOGIT_SCALE["init"]), abs_tol=1e-4)
    return OPENAI_LOGIT_SCALE if is_openai else {"init": math.exp(start), "max": 100.0}


def config_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a spec; what it cannot say is found by reading it again."""
    text, size = spec["text"], spec["embed_dim"]
    end_id = text.get("eot_id")
    if end_id is None:
        # The largest id is what transformers takes by the older number alone.
        is_last = not spec["tokenizer"].get("added_tokens")
        end_id = text["vocab_size"] - 1 if is_last else LEGACY_END_ID
    return {
        **joint_config(spec),
        "text_config": {
            "model_type": "clip_text_model",
            **tower_config(text),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "projection_dim": size,
            "bos_token_id": max(end_id - 1, 0),
            "eos_token_id": end_id,
            "pad_token_id": end_id,
        },
        "vision_config": {"model_type": "clip_vision_model", **image_config(spec)},
    }


def joint_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to neither tower: the size of the embedding, and the scale."""
    return {
        "projection_dim": spec["embed_dim"],
        "logit_scale_init_value": math.log(spec["logit_scale"]["init"]),
    }


def image_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The way back of `image_spec`."""
    return {
        **tower_config(spec["image"]),
        "image_size": spec["image_size"],
        "patch_size": spec["image"]["patch_size"],
        "num_channels": 3,
        "projection_dim": spec["embed_dim"],
    }


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of tensors."""
    return (
        *joint_leaves(),
        *image_leaves(spec["image"]),
        *text_embeddings(),
        *encoder("text_encoder", "text_model", spec["text"]),
    )


def joint_leaves() -> tuple[Leaf, ...]:
    """The scale and both projections, which have no bias."""
    return (
        leaf("logit_scale", "logit_scale"),
        leaf("image_projection/kernel", "visual_projection.weight", LINEAR),
        leaf("text_projection/kernel", "text_projection.weight", LINEAR),
    )


def image_leaves(image: Mapping[str, Any], theirs: str = "vision_model") -> tuple[Leaf, ...]:
    """CLIP's image tower without its projection, by the prefix of its names."""
    return (
        leaf("image_encoder/class_embedding", f"{theirs}.embeddings.class_embedding"),
        *image_embeddings(theirs),
        # The missing letter is theirs.
        *norm_leaves("image_encoder/ln_pre", f"{theirs}.pre_layrnorm"),
        *encoder("image_encoder", theirs, image),
    )
