"""What the fields of a model spec may hold, besides those of its two towers and its tokenizer."""

from collections.abc import Iterable, Mapping
from typing import Any

from clipjax.models.clip import PROJECTIONS
from clipjax.ranges import (
    IMAGE_SIZE,
    Choice,
    FieldError,
    Group,
    Many,
    Number,
    Optional,
    Rule,
    Text,
    check_known,
    whole,
)

# Within these, float32 holds a scale and its logarithm.
_SCALE = Number(1e-6, 1e30)
_PART = Group("with a `name`")

PREPROCESS: dict[str, Rule] = {
    "resize": Choice(("shortest", "squash", "patches")),
    "interpolation": Choice(("bicubic", "bilinear")),
    "mean": Many(Number(-1e3, 1e3), "numbers", exactly=3),
    "std": Many(Number(1e-6, 1e3), "numbers above 0", exactly=3),
    "crop_fraction": Number(0, 1, open_low=True),
    "max_patches": whole(1, 2**20),
}
LOGIT_SCALE: dict[str, Rule] = {"init": _SCALE, "max": Optional(_SCALE, "not clamped")}
MODEL: dict[str, Rule] = {
    "name": Text("a name", may_be_empty=False),
    "embed_dim": whole(1, 2**24),
    "image_size": IMAGE_SIZE,
    "image": _PART,
    "text": _PART,
    "tokenizer": _PART,
    "preprocess": Group("see docs/tokenizers.md"),
    "logit_scale": Group("with `init` and `max`"),
    "logit_bias": Optional(Number(-1e6, 1e6), "none"),
    "source": Text(),
    "image_projection": Choice(PROJECTIONS),
    "text_projection": Choice(PROJECTIONS),
}
# Absent means `linear`: they are not put in, so that older checkpoints' contracts stay as they are.
OPTIONAL_FIELDS = ("image_projection", "text_projection")


def check_spec(spec: Mapping[str, Any], path: str) -> None:
    """Checks a whole spec, up to what its towers and tokenizer check themselves.

    Raises:
        ValueError: names the path, what was found and what is allowed.
    """
    check_known(spec, MODEL, path)
    for part in ("image", "text", "tokenizer"):
        Text("a name", may_be_empty=False).check(spec[part].get("name"), f"{path}.{part}.name")
    required = ("resize", "interpolation", "mean", "std")
    check_known(spec["preprocess"], PREPROCESS, f"{path}.preprocess", required)
    check_known(spec["logit_scale"], LOGIT_SCALE, f"{path}.logit_scale", LOGIT_SCALE)
    init, most = spec["logit_scale"]["init"], spec["logit_scale"]["max"]
    if most is not None and init > most:
        raise FieldError(
            f"{path}.logit_scale.init = {init:g} is above {path}.logit_scale.max = {most:g}, and "
            "would be cut to it after the first step: lower the one, or raise the other"
        )
    for field in ("context_length", "vocab_size"):
        whole(1, 2**24).check(spec["text"].get(field), f"{path}.text.{field}")
    if "patch_size" in spec["image"]:
        whole(1, 2**24).check(spec["image"]["patch_size"], f"{path}.image.patch_size")


def check_patches(
    spec: Mapping[str, Any], published: Iterable[Mapping[str, Any]], path: str
) -> None:
    """Refuses an image that patches do not fill, unless a published model has the same two sizes.

    Raises:
        ValueError: names both sizes, and the multiples beside.
    """
    size, patch = sizes = _sizes(spec)
    if patch is None or size % patch == 0 or sizes in map(_sizes, published):
        return
    below, above = size // patch * patch, (size // patch + 1) * patch
    raise FieldError(
        f"{path}.image_size = {size} is no multiple of {path}.image.patch_size = {patch}: the last "
        f"{size % patch} pixels of a side would be cut off; take {f'{below} or ' if below else ''}"
        f"{above}"
    )


def _sizes(spec: Mapping[str, Any]) -> tuple[Any, Any]:
    return spec["image_size"], spec["image"].get("patch_size")
