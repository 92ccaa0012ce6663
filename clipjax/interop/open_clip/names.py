"""Every leaf of a model under OpenCLIP's names, and the forms that its files give those names."""

import re
from collections.abc import Mapping
from typing import Any

from clipjax.interop.leaves import Leaf, leaf
from clipjax.interop.open_clip.resnet import resnet_leaves
from clipjax.interop.open_clip.vit import (
    image_leaves,
    perception_leaves,
    text_leaves,
    trunk_leaves,
    xlm_roberta_leaves,
)
from clipjax.interop.tensors import LazyTensor

# OpenAI's archives hold three numbers beside the weights; nobody else's files have them.
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
# Counters, ids and masks that older versions of torch, transformers and OpenCLIP kept as buffers.
_BUFFERS = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|token_type_ids|attn_mask)$|^("
    + "|".join(OPENAI_NUMBERS)
    + ")$"
)
_TEXT_TOWER = ("text_projection", "positional_embedding", "token_embedding", "transformer.", "ln_")


def is_buffer(name: str) -> bool:
    """Whether a tensor of that name is no parameter."""
    return _BUFFERS.search(name) is not None


def has_custom_text(spec: Mapping[str, Any]) -> bool:
    """Whether OpenCLIP holds the model as a CustomTextCLIP: its text tower is behind `text.`."""
    return is_trunk(spec["image"]) or spec["text"]["name"] == "bert"


def is_trunk(image: Mapping[str, Any]) -> bool:
    """Whether OpenCLIP has an image tower of timm: one that is pooled by attention."""
    return image["name"] == "perception_encoder" or image.get("pooling") == "map"


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """Lists every leaf of a model with the tensors of OpenCLIP's state dict that make it.

    Raises:
        ValueError: OpenCLIP has no such towers.
    """
    image, text = spec["image"], spec["text"]
    if image["name"] == "modified_resnet":
        found = resnet_leaves(spec)
    elif image["name"] == "perception_encoder":
        found = perception_leaves(spec)
    elif image["name"] == "vit" and image.get("pooling") == "map":
        found = trunk_leaves(spec)
    elif image["name"] == "vit" and image.get("pooling", "cls") in ("cls", "patch_mean"):
        found = image_leaves(spec)
    else:
        raise ValueError(
            f"OpenCLIP has no image tower {image['name']!r} with pooling "
            f"{image.get('pooling')!r}; it has modified_resnet, perception_encoder, and vit "
            "with cls, patch_mean, map"
        )
    if text["name"] == "bert":
        found += xlm_roberta_leaves(spec)
    else:
        found += text_leaves(spec, "text." if has_custom_text(spec) else "")
    found.append(leaf("logit_scale", "logit_scale"))
    if spec["logit_bias"] is not None:
        found.append(leaf("logit_bias", "logit_bias"))
    return tuple(found)


def plain_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Brings the names of a file to one form: the text tower behind `text.`."""
    found = {}
    for name, tensor in tensors.items():
        if name in ("logit_scale", "logit_bias") and tensor.shape == (1,):
            tensor = tensor.row(0)  # models that were trained with `nonscalar_logit_scale`
        found[f"text.{name}" if name.startswith(_TEXT_TOWER) else name] = tensor
    return found


def names_of_spec(
    tensors: Mapping[str, LazyTensor], spec: Mapping[str, Any]
) -> dict[str, LazyTensor]:
    """Gives tensors of `plain_names` the names that `leaves` of the spec has."""
    if has_custom_text(spec):
        return dict(tensors)
    return {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
