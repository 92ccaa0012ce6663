"""Siglip2Model, SigLIP 2 for images of any aspect (NaFlex): its config and its tensors.

All but the patches is as in SiglipModel (arXiv:2502.14786).
"""

import math
from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face import siglip
from clipjax.interop.hugging_face.transformer import tower_spec
from clipjax.interop.leaves import LINEAR, Leaf, leaf, reshape
from clipjax.interop.section import Section
from clipjax.models.zoo import siglip_naflex

ARCHITECTURE = "Siglip2Model"
IMAGE_PROCESSOR = "Siglip2ImageProcessor"
IMAGE_ENCODER = "naflex_vit"
TEXT_ENCODER = siglip.TEXT_ENCODER
IN_OTHER_FILES = siglip.IN_OTHER_FILES

DEFAULTS = siglip.DEFAULTS
TEXT_DEFAULTS = siglip.TEXT_DEFAULTS
VISION_DEFAULTS = {k: v for k, v in siglip.VISION_DEFAULTS.items() if k != "image_size"}
VISION_DEFAULTS |= {"num_patches": 256}
_PREPROCESS = siglip_naflex.ROWS["siglip2-b-16-naflex"]["preprocess"]


def spec_of(config: Section, text: Section, vision: Section) -> dict[str, Any]:
    """The model spec of a config; how many patches an image gets, its processor says."""
    del config  # it holds the two objects only
    rows = vision.integer("num_patches")
    side = math.isqrt(rows)
    if side * side != rows:
        raise vision.error("num_patches", "the square of a number: the positions are a square")
    image = {
        "name": IMAGE_ENCODER,
        "patch_size": vision.side("patch_size"),
        "position_side": side,
        "init_name": "xavier",
        **tower_spec(vision),
    }
    spec = siglip.model_spec(text, vision, image, side * image["patch_size"])
    return {**spec, "preprocess": {**_PREPROCESS, "max_patches": rows}}


def config_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a spec; what it cannot say is found by reading it again."""
    config = siglip.config_of(spec)
    text = {**config["text_config"], "model_type": "siglip2_text_model"}
    vision = {**config["vision_config"], "model_type": "siglip2_vision_model"}
    del vision["image_size"]
    vision["num_patches"] = spec["image"]["position_side"] ** 2
    return {"text_config": text, "vision_config": vision}


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of tensors: a patch is a row of numbers, and its embedding a matrix."""
    size, width = spec["image"]["patch_size"], spec["image"]["width"]
    as_matrix = LINEAR.then(reshape((size * size * 3, width), (size, size, 3, width)))
    name = "image_encoder/patch_kernel"
    theirs = "vision_model.embeddings.patch_embedding.weight"
    return tuple(
        leaf(name, theirs, as_matrix) if row.name == name else row for row in siglip.leaves(spec)
    )


ignored, unused = siglip.ignored, siglip.unused
