"""open_clip_config.json, from which OpenCLIP builds the model, made of a spec."""

import math
from collections.abc import Mapping
from typing import Any

from absl import logging

from clipjax.interop.open_clip import tokenizer, trunks
from clipjax.interop.open_clip.names import has_custom_text, is_trunk

Config = dict[str, Any]

# transformers' names by (depth, width).
_XLM_ROBERTA = {(12, 768): "xlm-roberta-base", (24, 1024): "xlm-roberta-large"}


def config_of_spec(spec: Mapping[str, Any]) -> Config:
    """Says a spec as an open_clip_config.json.

    Raises:
        ValueError: OpenCLIP has no such model.
    """
    model: Config = {"embed_dim": spec["embed_dim"]}
    if spec["logit_bias"] is not None:
        model["init_logit_bias"] = spec["logit_bias"]
    if has_custom_text(spec):
        model["custom_text"] = True
    if "quick_gelu" in _native_activations(spec):
        model["quick_gelu"] = True
    preprocess = spec["preprocess"]
    return {
        "model_cfg": {**model, "vision_cfg": _vision(spec), "text_cfg": _text(spec)},
        "preprocess_cfg": {
            "size": spec["image_size"],
            "mode": "RGB",
            "mean": list(preprocess["mean"]),
            "std": list(preprocess["std"]),
            "interpolation": preprocess["interpolation"],
            "resize_mode": preprocess["resize"],
        },
    }


def _native_activations(spec: Mapping[str, Any]) -> set[str]:
    """Activations of the towers that are OpenCLIP's own code, which has one quick_gelu for both."""
    found = set()
    if spec["image"]["name"] == "vit" and spec["image"].get("pooling") != "map":
        found.add(spec["image"]["activation"])
    if spec["text"]["name"] != "bert":
        found.add(spec["text"]["activation"])
    if "quick_gelu" in found and len(found) > 1:
        raise ValueError(
            f"activations {', '.join(sorted(found))}: OpenCLIP has quick_gelu in both towers or in "
            "neither"
        )
    return found


def _ratio(tower: Mapping[str, Any]) -> Config:
    """`mlp_ratio`, such that OpenCLIP's int(width * ratio) is the width of the MLP."""
    ratio = tower["mlp_dim"] / tower["width"]
    if ratio == 4.0:
        return {}
    if int(tower["width"] * ratio) != tower["mlp_dim"]:
        ratio = math.nextafter(ratio, math.inf)
    return {"mlp_ratio": ratio}


def _act_and_norm(tower: Mapping[str, Any]) -> Config:
    section: Config = {}
    if tower["activation"] == "gelu_tanh":
        section["act_kwargs"] = {"approximate": "tanh"}
    if tower.get("layer_norm_eps", 1e-5) != 1e-5:
        section["norm_kwargs"] = {"eps": tower["layer_norm_eps"]}
    return section


def _vision(spec: Mapping[str, Any]) -> Config:
    image, size = spec["image"], {"image_size": spec["image_size"]}
    if image["name"] == "modified_resnet":
        layers, head_width = list(image["layers"]), 32 * image["width"] // image["num_heads"]
        return {**size, "layers": layers, "width": image["width"], "head_width": head_width}
    if is_trunk(image):
        trunk = trunks.trunk_of_spec(spec)
        if trunk.activation != image["activation"]:
            logging.warning(
                "OpenCLIP runs the image tower %s with %s, not with %s: its embeddings differ a "
                "little from clipjax's",
                trunk.name,
                trunk.activation,
                image["activation"],
            )
        return {
            **size,
            "timm_model_name": trunk.name,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": None if trunk.has_projection else "none",
        }
    section = {**size, "layers": image["depth"], "width": image["width"]}
    section |= {"head_width": image["width"] // image["num_heads"]}
    section |= {"patch_size": image["patch_size"], **_ratio(image), **_act_and_norm(image)}
    if not image.get("pre_norm", True):
        section["no_ln_pre"] = True
    if image.get("pooling") == "patch_mean":
        section |= {"pool_type": "avg", "final_ln_after_pool": True}
    return section


def _text(spec: Mapping[str, Any]) -> Config:
    text, projection = spec["text"], spec.get("text_projection", "linear")
    section: Config = {"context_length": text["context_length"], **tokenizer.text_fields(spec)}
    if text["name"] == "bert":
        if text.get("pooling", "cls") != "mean":
            raise ValueError(
                f"text pooling {text.get('pooling', 'cls')!r}: OpenCLIP's XLM-RoBERTa has 'mean'"
            )
        sizes = (text["depth"], text["width"])
        if sizes not in _XLM_ROBERTA or text["vocab_size"] != 250002:
            raise ValueError(f"a BERT of depth and width {sizes} is no model that OpenCLIP wraps")
        name = _XLM_ROBERTA[sizes]
        section |= {"hf_model_name": name, "hf_tokenizer_name": name}
        return {**section, "hf_proj_type": projection, "hf_pooler_type": "mean_pooler"}
    poolings = {"eot": "argmax", "last": "last"}
    if text["pooling"] not in poolings:
        raise ValueError(f"text pooling {text['pooling']!r}: OpenCLIP has {', '.join(poolings)}")
    end_id = text.get("eot_id")
    if end_id is not None and spec["tokenizer"]["name"] == "clip_bpe":
        raise ValueError(
            f"text.eot_id = {end_id}: OpenCLIP pools at the largest id, which an added "
            "token may be; write target_format='clipjax' | 'hf'"
        )
    section |= {"vocab_size": text["vocab_size"], "width": text["width"]}
    section |= {"heads": text["num_heads"], "layers": text["depth"]}
    section |= {**_ratio(text), **_act_and_norm(text), "pool_type": poolings[text["pooling"]]}
    if end_id is not None:
        section |= {"pool_type": "eos", "eos_id": end_id}
    if text["name"] == "bidirectional_transformer":
        section["no_causal_mask"] = True
    if projection == "linear_bias":
        section["proj_bias"] = True
    elif projection == "none":
        section["proj_type"] = "none"
    return section
