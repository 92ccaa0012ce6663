"""open_clip_config.json, which says what tensors cannot, read over a draft."""

from collections.abc import Mapping
from typing import Any

from clipjax.config import merge
from clipjax.interop.open_clip.rows import activation_of, candidates
from clipjax.interop.open_clip.trunks import TRUNKS
from clipjax.models.zoo.parts import OPENAI_MEAN, OPENAI_STD

Config = dict[str, Any]


_MODEL_FIELDS = (
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"),
    *("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"),
)
_VISION_FIELDS = (
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
    *("no_ln_pre", "final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs"),
    *("timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"),
    *("pos_embed_type", "patch_dropout"),
)
_TEXT_FIELDS = (
    *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
    *("hf_tokenizer_name", "tokenizer_kwargs", "no_causal_mask", "pool_type", "eos_id"),
    *("proj_bias", "proj_type", "act_kwargs", "norm_kwargs", "pad_id"),
    *("hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
)


def spec_of_config(draft: Mapping[str, Any], config: Mapping[str, Any], *, where: str) -> Config:
    """Completes a draft by what an open_clip_config.json says.

    Returns:
        The whole spec: constants of the zoo's row of these sizes, changed to what the file says.

    Raises:
        ValueError: the file asks for what clipjax lacks, or is not that of the tensors.
    """
    try:
        model, vision, text = _sections(config)
        draft = merge(draft, _forms(draft, vision, text))
        said = merge(_constants(draft, model, vision, text), {"image_size": _size(draft, vision)})
        said["preprocess"] = _preprocess(config.get("preprocess_cfg") or {})
        _check_sizes(draft, model, vision, text)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{where} is no OpenCLIP config: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    rows = candidates(draft)
    if not rows:
        raise ValueError(f"{where}: no model of the zoo is of its kind")
    rows = _ending_with(rows, draft["text"].get("eot_id"))
    if not rows:
        raise ValueError(f"{where}: text_cfg.pool_type is not 'eos', as in models of its kind")
    base = next((r for r in rows if merge(r, said) == r), None)
    base = base or next((r for r in rows if activation_of(r) == activation_of(said)), rows[0])
    return merge(base, said)


def _ending_with(rows: list[Config], end_id: int | None) -> list[Config]:
    """The rows whose texts are pooled at that id; a row that names none may be told one."""
    found = [row for row in rows if row["text"].get("eot_id") == end_id]
    silent = [row for row in rows if row["text"].get("eot_id") is None]
    return found or [merge(row, {"text": {"eot_id": end_id}}) for row in silent]


def check_square(config: Mapping[str, Any], *, where: str) -> None:
    """Refuses images or patches that are no squares.

    Before the tensors are looked at: the positions of 8 x 18 patches could be those of 12 x 12.

    Raises:
        ValueError: names the field.
    """
    model = config.get("model_cfg") if isinstance(config, Mapping) else None
    vision = model.get("vision_cfg") if isinstance(model, Mapping) else None
    pixels = config.get("preprocess_cfg") if isinstance(config, Mapping) else None
    fields = {
        "vision_cfg.image_size": (vision, "image_size"),
        "vision_cfg.patch_size": (vision, "patch_size"),
        "preprocess_cfg.size": (pixels, "size"),
    }
    for name, (section, key) in fields.items():
        size = section.get(key) if isinstance(section, Mapping) else None
        if isinstance(size, list) and any(x != size[0] for x in size):
            raise ValueError(f"{where}: {name} = {size}; only square images are supported")


def _sections(config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    model = config["model_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
    sections = {"model_cfg": model, "vision_cfg": vision, "text_cfg": text}
    known = (_MODEL_FIELDS, _VISION_FIELDS, _TEXT_FIELDS)
    for (name, section), fields in zip(sections.items(), known, strict=True):
        # Null, false and 0 are OpenCLIP's way to say that a feature is off.
        odd = [key for key, value in section.items() if key not in fields and value]
        if odd:
            raise ValueError(
                f"{name}.{odd[0]} = {section[odd[0]]!r} is a feature that clipjax does not have"
            )
    return model, vision, text


def _activation(section: Mapping[str, Any], quick_gelu: bool) -> str:
    kwargs = section.get("act_kwargs") or {}
    if quick_gelu:
        return "quick_gelu"
    return "gelu_tanh" if kwargs.get("approximate") == "tanh" else "gelu"


def _int(section: Mapping[str, Any], field: str, default: int) -> int:
    value = section.get(field, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"{field} = {value!r}: expected a positive whole number")
    return value


def _eps(section: Mapping[str, Any]) -> float:
    eps = float((section.get("norm_kwargs") or {}).get("eps", 1e-5))
    if not 0 < eps < 1:
        raise ValueError(f"norm_kwargs.eps = {eps}: expected a small positive number")
    return eps


def _constants(draft: Mapping[str, Any], model: Any, vision: Any, text: Any) -> Config:
    """Heads, activations and epsilons."""
    quick_gelu = bool(model.get("quick_gelu"))
    image: Config = {}
    if "timm_model_name" in vision:
        name = vision["timm_model_name"]
        if name not in TRUNKS:
            raise ValueError(f"timm_model_name = {name!r} is not known; {', '.join(TRUNKS)} are")
        trunk = TRUNKS[name]
        image = {"num_heads": trunk.num_heads, "activation": trunk.activation}
        image["layer_norm_eps"] = trunk.layer_norm_eps
    elif draft["image"]["name"] == "modified_resnet":
        image = {"num_heads": 32 * _int(vision, "width", 64) // _int(vision, "head_width", 64)}
    else:
        image = {
            "num_heads": _int(vision, "width", 768) // _int(vision, "head_width", 64),
            "activation": _activation(vision, quick_gelu),
            "layer_norm_eps": _eps(vision),
        }
    said: Config = {"image": image, "text": {}}
    if "hf_model_name" not in text:
        said["text"] = {
            "num_heads": _int(text, "heads", 8),
            "activation": _activation(text, quick_gelu),
            "layer_norm_eps": _eps(text),
        }
    elif draft["text"]["name"] != "bert":
        raise ValueError(f"hf_model_name = {text['hf_model_name']!r}, the tensors are CLIP's text")
    else:
        said["text"] = {"activation": "gelu", "context_length": _int(text, "context_length", 77)}
    return said


def _forms(draft: Mapping[str, Any], vision: Any, text: Any) -> Config:
    """Pooling and masks, which the draft could only guess from what is published."""
    forms: Config = {"image": {}, "text": {}}
    if "timm_model_name" not in vision and draft["image"]["name"] == "vit":
        pool = (vision.get("pool_type") or "tok", bool(vision.get("final_ln_after_pool")))
        poolings = {("tok", False): "cls", ("avg", True): "patch_mean"}
        if pool not in poolings:
            raise ValueError(
                f"vision_cfg.pool_type = {pool[0]!r} with final_ln_after_pool = {pool[1]}: clipjax "
                "has 'tok' without it and 'avg' with it"
            )
        forms["image"]["pooling"] = poolings[pool]
    if "hf_model_name" not in text:
        token = text.get("pool_type") or "argmax"
        if token not in ("argmax", "last", "eos"):
            raise ValueError(
                f"text_cfg.pool_type = {token!r}: clipjax has 'argmax', 'eos' and 'last'"
            )
        causal = not text.get("no_causal_mask", False)
        forms["text"]["name"] = "causal_transformer" if causal else "bidirectional_transformer"
        forms["text"]["pooling"] = "last" if token == "last" else "eot"
        if token == "eos":
            forms["text"]["eot_id"] = end_id = text.get("eos_id", 2)
            if "hf_tokenizer_name" not in text and end_id != text["vocab_size"] - 1:
                raise ValueError(
                    f"text_cfg.pool_type = 'eos' with eos_id = {end_id}: CLIP's byte pairs end a "
                    f"text with {text['vocab_size'] - 1}; expected that, or hf_tokenizer_name"
                )
    return forms


def _size(draft: Mapping[str, Any], vision: Mapping[str, Any]) -> int:
    size, patch = vision.get("image_size", 224), draft["image"].get("patch_size", 32)
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    if not isinstance(size, int) or size // patch != draft["image_size"] // patch:
        raise ValueError(
            f"vision_cfg.image_size = {size}, the tensors' positions are those of "
            f"{draft['image_size']} pixels"
        )
    return size


def _check_sizes(draft: Mapping[str, Any], model: Any, vision: Any, text: Any) -> None:
    depth = draft["image"].get("depth", draft["image"].get("layers"))
    wanted = {"embed_dim": (model["embed_dim"], draft["embed_dim"])}
    if "timm_model_name" not in vision:
        wanted["vision_cfg.width"] = (vision.get("width", 768), draft["image"]["width"])
        wanted["vision_cfg.layers"] = (vision.get("layers", 12), depth)
    if "hf_model_name" not in text:
        defaults = {"width": 512, "layers": 12, "context_length": 77, "vocab_size": 49408}
        for field, default in defaults.items():
            found = draft["text"]["depth" if field == "layers" else field]
            wanted[f"text_cfg.{field}"] = (text.get(field, default), found)
    for field, (said, found) in wanted.items():
        if said != found:
            raise ValueError(f"{field} = {said}, the tensors have {found}; take files that match")


def _preprocess(section: Mapping[str, Any]) -> Config:
    found = {
        "resize": section.get("resize_mode") or "shortest",
        "interpolation": section.get("interpolation") or "bicubic",
        "mean": [float(x) for x in section.get("mean") or OPENAI_MEAN],
        "std": [float(x) for x in section.get("std") or OPENAI_STD],
    }
    shapes = len(found["mean"]), len(found["std"])
    numbers = [*found["mean"], *found["std"]]
    if shapes != (3, 3) or 0.0 in found["std"] or not all(0 <= x < 10 for x in numbers):
        raise ValueError(
            f"preprocess_cfg: mean {found['mean']} and std {found['std']} of 3 channels"
        )
    for field, allowed in (
        ("resize", ("shortest", "squash")),
        ("interpolation", ("bicubic", "bilinear")),
    ):
        if found[field] not in allowed:
            raise ValueError(
                f"preprocess_cfg: {field} {found[field]!r} is not known; {', '.join(allowed)} are"
            )
    return found
