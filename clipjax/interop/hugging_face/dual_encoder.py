"""VisionTextDualEncoderModel: two published towers with projections behind them.

The image tower is CLIP's or a ViT, the text tower BERT, or RoBERTa and what has its form. Each is
pooled as its own class pools, so that but for CLIP's a dense layer with tanh stands in between.
"""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face import bert, clip
from clipjax.interop.hugging_face.bert import ignored as ignored
from clipjax.interop.hugging_face.transformer import tower_config, tower_spec
from clipjax.interop.hugging_face.transformer import unused as unused
from clipjax.interop.leaves import (
    CONV,
    BlockNames,
    Leaf,
    drop_axes,
    leaf,
    linear_leaves,
    norm_leaves,
    reshape,
    stack_leaves,
)
from clipjax.interop.section import Section
from clipjax.interop.tensors import LazyTensor
from clipjax.models.zoo.parts import OPENAI_PREPROCESS

ARCHITECTURE = "VisionTextDualEncoderModel"
IMAGE_PROCESSOR = "CLIPImageProcessor"
IMAGE_ENCODER = "vit"
TEXT_ENCODER = "bert"
# Fields of the spec that config.json does not hold.
IN_OTHER_FILES = ("tokenizer", "preprocess", "text.context_length")
# Of CLIP's texts; no file says how long a dual encoder's are but for the limit of its positions.
_CONTEXT_LENGTH = 77

DEFAULTS = {"projection_dim": 512, "logit_scale_init_value": 2.6592}
_VIT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "pooler_act": "tanh",
    "pooler_output_size": None,
}
_ROBERTA = {**bert.DEFAULTS, "pad_token_id": 1}
# By model_type, as of which class the fields are and what absent ones mean.
_IMAGES = {
    "vit": _VIT,
    "clip_vision_model": clip.VISION_DEFAULTS,
    "clip": clip.VISION_DEFAULTS,
}
_TEXTS = {
    "bert": bert.DEFAULTS,
    "roberta": {**_ROBERTA, "vocab_size": 50265},
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
}
_BLOCK = BlockNames(
    ln_1="layernorm_before",
    ln_2="layernorm_after",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    out="attention.output.dense",
    fc="intermediate.dense",
    proj="output.dense",
)
_CLIP_NAMES = "vision_model.vision_model"


def _defaults_of(kinds: Mapping[str, Mapping[str, Any]], first: str) -> Any:
    def defaults(values: Mapping[str, Any]) -> dict[str, Any]:
        kind = values.get("model_type", first)
        known = kinds.get(kind, {}) if isinstance(kind, str) else {}
        return {"model_type": first, **known}

    return defaults


TEXT_DEFAULTS = _defaults_of(_TEXTS, "bert")
VISION_DEFAULTS = _defaults_of(_IMAGES, "vit")


def spec_of(config: Section, text: Section, vision: Section) -> dict[str, Any]:
    """The model spec of a config; the text's `context_length` stands with the tokenizer."""
    kind = text.choice("model_type", {kind: kind for kind in _TEXTS})
    is_vit = vision.choice("model_type", {kind: kind == "vit" for kind in _IMAGES})
    return {
        "name": "",
        "embed_dim": config.integer("projection_dim"),
        "image_size": vision.side("image_size"),
        "image": _vit_spec(vision) if is_vit else clip.image_spec(vision),
        "text": bert.text_spec(
            text, context_length=_CONTEXT_LENGTH, pooling="pooler", after_pad=kind != "bert"
        ),
        "tokenizer": {},
        "preprocess": OPENAI_PREPROCESS,
        "logit_scale": clip.scale_spec(config),
        "logit_bias": None,
        "source": "",
    }


def _vit_spec(vision: Section) -> dict[str, Any]:
    vision.must_be("num_channels", 3)
    vision.must_be("qkv_bias", True)
    vision.must_be("pooler_act", "tanh")
    vision.must_be("pooler_output_size", None, vision.get("hidden_size"))
    vision.ignore(["encoder_stride"])  # of another task
    return {
        "name": IMAGE_ENCODER,
        "patch_size": vision.side("patch_size"),
        "pooling": "pooler",
        "pre_norm": False,
        "patch_bias": True,
        "init_name": "bert",
        **tower_spec(vision),
    }


def config_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a spec; what it cannot say is found by reading it again."""
    image = spec["image"]
    vision = {"model_type": "clip_vision_model", **clip.image_config(spec)}
    if image["pooling"] == "pooler":
        vision = {
            "model_type": "vit",
            **tower_config(image),
            "image_size": spec["image_size"],
            "patch_size": image["patch_size"],
            "num_channels": 3,
        }
    kind = "roberta" if spec["text"]["position_offset"] else "bert"
    return {
        **clip.joint_config(spec),
        "text_config": {"model_type": kind, **bert.text_config(spec["text"])},
        "vision_config": vision,
    }


def plain_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """CLIP's image tower by the names that transformers wrote before its version 5."""
    if "vision_model.embeddings.class_embedding" not in tensors:
        return dict(tensors)
    before, after = "vision_model.", f"{_CLIP_NAMES}."
    return {
        (after + name.removeprefix(before) if name.startswith(before) else name): tensor
        for name, tensor in tensors.items()
    }


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of tensors."""
    image = spec["image"]
    is_vit = image["pooling"] == "pooler"
    return (
        *clip.joint_leaves(),
        *(_vit_leaves(image) if is_vit else clip.image_leaves(image, _CLIP_NAMES)),
        *bert.leaves("text_encoder", "text_model", spec["text"]),
        *linear_leaves("text_encoder/pooler", "text_model.pooler.dense"),
    )


def _vit_leaves(image: Mapping[str, Any]) -> tuple[Leaf, ...]:
    ours, theirs = "image_encoder", "vision_model"
    embeddings, width = f"{theirs}.embeddings", image["width"]
    patches = f"{embeddings}.patch_embeddings.projection"
    class_token = reshape((1, 1, width), (width,))
    return (
        leaf(f"{ours}/class_embedding", f"{embeddings}.cls_token", class_token),
        leaf(f"{ours}/patch_kernel", f"{patches}.weight", CONV),
        leaf(f"{ours}/patch_bias", f"{patches}.bias"),
        leaf(f"{ours}/position_embedding", f"{embeddings}.position_embeddings", drop_axes(0)),
        *stack_leaves(ours, f"{theirs}.encoder.layer", _BLOCK, image),
        *norm_leaves(f"{ours}/ln_post", f"{theirs}.layernorm"),
        *linear_leaves(f"{ours}/pooler", f"{theirs}.pooler.dense"),
    )
