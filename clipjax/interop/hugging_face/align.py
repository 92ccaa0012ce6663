"""AlignModel: its config and its tensors (arXiv:2102.05918)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipjax.interop.hugging_face import bert
from clipjax.interop.leaves import CONV, Leaf, Transform, batch_norm_leaves, leaf, linear_leaves
from clipjax.interop.section import Section
from clipjax.interop.tensors import LazyTensor, of_array
from clipjax.models.efficientnet import STAGES
from clipjax.models.zoo import bert_text

ARCHITECTURE = "AlignModel"
IMAGE_PROCESSOR = "EfficientNetImageProcessor"
IMAGE_ENCODER = "efficientnet"
TEXT_ENCODER = "bert"
# Fields of the spec that config.json does not hold.
IN_OTHER_FILES = ("tokenizer", "preprocess", "image_size", "text.context_length")
_PUBLISHED = bert_text.ROWS["align-base"]

DEFAULTS = {"projection_dim": 640, "temperature_init_value": 1.0}
TEXT_DEFAULTS = bert.DEFAULTS
# The network has one form here, that of EfficientNet with ALIGN's padding: all else is refused.
_NETWORK = {
    "num_channels": 3,
    "depth_divisor": 8,
    "kernel_sizes": [stage.kernel for stage in STAGES],
    "in_channels": [32, *[stage.channels for stage in STAGES[:-1]]],
    "out_channels": [stage.channels for stage in STAGES],
    "depthwise_padding": [],
    "strides": [stage.stride for stage in STAGES],
    "num_block_repeats": [stage.num_blocks for stage in STAGES],
    "expand_ratios": [stage.expansion for stage in STAGES],
    "squeeze_expansion_ratio": 0.25,
    "hidden_act": "swish",
    "pooling_type": "mean",
    "batch_norm_eps": 0.001,
    "batch_norm_momentum": 0.99,
}
VISION_DEFAULTS = {
    **_NETWORK,
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "drop_connect_rate": 0.2,
}


def spec_of(config: Section, text: Section, vision: Section) -> dict[str, Any]:
    """The model spec of a config.

    Its `image_size` and the text's `context_length` stand in files of their own (preprocessor and
    tokenizer); here they are the published model's.
    """
    for name, value in _NETWORK.items():
        vision.must_be(name, value)
    # The mean is over the whole map; their size of it and of the image are read by nobody.
    vision.ignore(["hidden_dim", "image_size", "num_hidden_layers"])
    return {
        **_PUBLISHED,
        "name": "",
        "embed_dim": config.integer("projection_dim"),
        "image": {
            "name": IMAGE_ENCODER,
            "width_factor": vision.number("width_coefficient"),
            "depth_factor": vision.number("depth_coefficient"),
            "drop_connect": vision.fraction("drop_connect_rate"),
        },
        "text": bert.text_spec(
            text, context_length=_PUBLISHED["text"]["context_length"], pooling="cls"
        ),
        "logit_scale": {"init": 1 / config.number("temperature_init_value"), "max": None},
        "source": "",
    }


def config_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a spec; what it cannot say is found by reading it again."""
    image, text = spec["image"], spec["text"]
    return {
        "projection_dim": spec["embed_dim"],
        "temperature_init_value": 1 / spec["logit_scale"]["init"],
        "text_config": {"model_type": "align_text_model", **bert.text_config(text)},
        "vision_config": {
            "model_type": "align_vision_model",
            **_NETWORK,
            "image_size": spec["image_size"],
            "width_coefficient": image["width_factor"],
            "depth_coefficient": image["depth_factor"],
            "drop_connect_rate": image["drop_connect"],
        },
    }


# Theirs is the temperature t of `cosine / t`, ours the logarithm of 1 / t. Both are float32, so
# that the way there and back may change the last bits; no other tensor of any family does.
_TEMPERATURE = Transform(
    lambda x: np.asarray(-np.log(x.astype(np.float64)), np.float32),
    lambda x: np.asarray(np.exp(-x.astype(np.float64)), np.float32),
)


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of tensors; the pooler of theirs that nothing reads is not in it."""
    return (
        leaf("logit_scale", "temperature", _TEMPERATURE),
        *batch_norm_leaves("image_encoder/stem_bn", "vision_model.embeddings.batchnorm"),
        leaf("image_encoder/stem_conv/kernel", "vision_model.embeddings.convolution.weight", CONV),
        *_blocks(spec["image"]["depth_factor"]),
        *bert.leaves("text_encoder", "text_model", spec["text"]),
        *linear_leaves("text_projection", "text_projection"),
    )


def _blocks(depth_factor: float) -> list[Leaf]:
    rows: list[Leaf] = []
    number = 0
    for i, stage in enumerate(STAGES):
        for j in range(math.ceil(depth_factor * stage.num_blocks)):
            ours = f"image_encoder/stage{i + 1}_{j}"
            rows += _block(ours, f"vision_model.encoder.blocks.{number}", stage.expansion > 1)
            number += 1
    return rows


def _block(ours: str, theirs: str, expands: bool) -> list[Leaf]:
    convolutions = {
        "depthwise_conv": "depthwise_conv.depthwise_conv",
        "squeeze": "squeeze_excite.reduce",
        "excite": "squeeze_excite.expand",
        "project_conv": "projection.project_conv",
    }
    norms = {"depthwise_bn": "depthwise_conv.depthwise_norm", "project_bn": "projection.project_bn"}
    if expands:
        convolutions["expand_conv"] = "expansion.expand_conv"
        norms["expand_bn"] = "expansion.expand_bn"
    rows: list[Leaf] = []
    for our, their in convolutions.items():
        rows.append(leaf(f"{ours}/{our}/kernel", f"{theirs}.{their}.weight", CONV))
        if our in ("squeeze", "excite"):
            rows.append(leaf(f"{ours}/{our}/bias", f"{theirs}.{their}.bias"))
    for our, their in norms.items():
        rows += batch_norm_leaves(f"{ours}/{our}", f"{theirs}.{their}")
    return rows


def ignored(name: str) -> bool:
    """Whether a tensor is a buffer, or of the pooler that nothing reads."""
    pooler = name.startswith("text_model.pooler.")
    return pooler or name.endswith(".num_batches_tracked") or bert.ignored(name)


def unused(spec: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Tensors that AlignModel misses where they are absent, and computes nothing of use with."""
    width = spec["text"]["width"]
    pooler = {
        "text_model.pooler.dense.weight": np.zeros((width, width), np.float32),
        "text_model.pooler.dense.bias": np.zeros(width, np.float32),
    }
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for entry in leaves(spec)
        for name in entry.theirs
        if isinstance(name, str) and name.endswith(".running_mean")
    }
    return {name: of_array(value) for name, value in {**pooler, **counters}.items()}
