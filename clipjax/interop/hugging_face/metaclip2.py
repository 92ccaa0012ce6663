"""MetaClip2Model: CLIPModel's towers and tensors over another vocabulary (arXiv:2507.22062)."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face import clip
from clipjax.interop.hugging_face.transformer import ignored as ignored
from clipjax.interop.hugging_face.transformer import unused as unused
from clipjax.interop.leaves import Leaf
from clipjax.interop.section import Section

ARCHITECTURE = "MetaClip2Model"
IMAGE_PROCESSOR = "CLIPImageProcessor"
IMAGE_ENCODER = clip.IMAGE_ENCODER
TEXT_ENCODER = clip.TEXT_ENCODER
IN_OTHER_FILES = clip.IN_OTHER_FILES

DEFAULTS = clip.DEFAULTS
TEXT_DEFAULTS = clip.TEXT_DEFAULTS
VISION_DEFAULTS = clip.VISION_DEFAULTS


def spec_of(config: Section, text: Section, vision: Section) -> dict[str, Any]:
    """The model spec of a config; a text is pooled at its first `eos_token_id`, whichever it is."""
    end_id, vocab_size = text.get("eos_token_id"), text.integer("vocab_size")
    if type(end_id) is not int or not 1 <= end_id < vocab_size:
        raise text.error("eos_token_id", f"an id from 1 to {vocab_size - 1}")
    spec = clip.spec_of(config, text, vision)
    return {**spec, "text": {**spec["text"], "eot_id": end_id}, "tokenizer": {}}


def config_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a spec; what it cannot say is found by reading it again."""
    config = clip.config_of(spec)
    end_id = spec["text"]["eot_id"]
    ids = {"bos_token_id": 0, "eos_token_id": end_id, "pad_token_id": 1}
    text = {**config["text_config"], "model_type": "metaclip_2_text_model", **ids}
    vision = {**config["vision_config"], "model_type": "metaclip_2_vision_model"}
    return {**config, "text_config": text, "vision_config": vision}


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of tensors, which is CLIPModel's."""
    return clip.leaves(spec)
