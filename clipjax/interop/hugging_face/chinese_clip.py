"""ChineseCLIPModel: its config and its tensors (arXiv:2211.01335).

CLIP's image tower, and BERT with its first token projected as the text tower.
"""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face import bert, clip
from clipjax.interop.hugging_face.bert import ignored as ignored
from clipjax.interop.hugging_face.transformer import unused as unused
from clipjax.interop.leaves import Leaf
from clipjax.interop.section import Section
from clipjax.models.zoo import chinese_clip

ARCHITECTURE = "ChineseCLIPModel"
IMAGE_PROCESSOR = "ChineseCLIPImageProcessor"
IMAGE_ENCODER = "vit"
TEXT_ENCODER = "bert"
# Fields of the spec that config.json does not hold.
IN_OTHER_FILES = ("tokenizer", "preprocess", "text.context_length")

DEFAULTS = clip.DEFAULTS
TEXT_DEFAULTS = bert.DEFAULTS
VISION_DEFAULTS = clip.VISION_DEFAULTS
_PUBLISHED = chinese_clip.ROWS["chinese-clip-vit-base-patch16"]


def spec_of(config: Section, text: Section, vision: Section) -> dict[str, Any]:
    """The model spec of a config; the text's `context_length` stands with the tokenizer."""
    length = _PUBLISHED["text"]["context_length"]
    return {
        **_PUBLISHED,
        "name": "",
        "embed_dim": config.integer("projection_dim"),
        "image_size": vision.side("image_size"),
        "image": clip.image_spec(vision),
        "text": bert.text_spec(text, context_length=length, pooling="cls"),
        "logit_scale": clip.scale_spec(config),
        "source": "",
    }


def config_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a spec; what it cannot say is found by reading it again."""
    return {
        **clip.joint_config(spec),
        "text_config": {"model_type": "chinese_clip_text_model", **bert.text_config(spec["text"])},
        "vision_config": {"model_type": "chinese_clip_vision_model", **clip.image_config(spec)},
    }


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of tensors."""
    return (
        *clip.joint_leaves(),
        *clip.image_leaves(spec["image"]),
        *bert.leaves("text_encoder", "text_model", spec["text"]),
    )
