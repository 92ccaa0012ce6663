"""From a preprocessor_config.json to `preprocess` of a spec and back."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.section import Section
from clipjax.interop.tensors import WeightFileError
from clipjax.models.zoo.parts import HALF, OPENAI_MEAN, OPENAI_STD

_COMMON = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": HALF,
    "image_std": HALF,
    "resample": 3,
}
# image_processor_type: what it means by leaving a field out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {
        **_COMMON,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
    },
    "SiglipImageProcessor": {**_COMMON, "size": {"height": 224, "width": 224}},
    "EfficientNetImageProcessor": {
        **_COMMON,
        "size": {"height": 346, "width": 346},
        "do_center_crop": False,
        "crop_size": 289,
        "resample": 0,
        "rescale_offset": False,
        "include_top": True,
    },
}
DEFAULTS["ViTImageProcessor"] = {**DEFAULTS["SiglipImageProcessor"], "resample": 2}
# Chinese-CLIP's is CLIP's by another name.
DEFAULTS["ChineseCLIPImageProcessor"] = DEFAULTS["CLIPImageProcessor"]
PATCHES = "Siglip2ImageProcessor"
DEFAULTS[PATCHES] = {**_COMMON, "resample": 2, "patch_size": 16, "max_num_patches": 256}
# The same processor by the name of another version, or of another implementation.
_TYPES = {name: name for name in DEFAULTS}
_TYPES |= {f"{name}Fast": name for name in DEFAULTS}
_TYPES |= {
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "ViTFeatureExtractor": "ViTImageProcessor",
    "ChineseCLIPFeatureExtractor": "ChineseCLIPImageProcessor",
}
_NO_MATTER = (
    "_processor_class",
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "do_pad",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "input_data_format",
    "pad_size",
    "processor_class",
    "return_tensors",
)
# As in Pillow's Resampling.
_INTERPOLATIONS = {3: "bicubic", 2: "bilinear"}
_RESAMPLES = {name: number for number, name in _INTERPOLATIONS.items()}


def read_preprocessor(
    config: Mapping[str, Any], where: str, kind: str, patch_size: int | None
) -> tuple[dict[str, Any], int | None]:
    """Gives `preprocess` of the spec, and the pixels of a side that come out.

    Args:
        config: the JSON object.
        where: the file, for messages.
        kind: processor that the family has, a key of DEFAULTS; the file may name another.
        patch_size: of the image tower, where it has patches.

    Returns:
        `preprocess`, and the pixels; None where images keep their aspect.

    Raises:
        WeightFileError: names the field that is not supported.
    """
    named = config.get("image_processor_type", config.get("feature_extractor_type", kind))
    allowed = [x for x in _TYPES if (_TYPES[x] == PATCHES) == (kind == PATCHES)]
    if not isinstance(named, str) or named not in allowed:
        raise WeightFileError(
            f"{where}.image_processor_type is {named!r:.80}; supported are {', '.join(allowed)}"
        )
    section = Section(config, where, DEFAULTS[_TYPES[named]])
    section.ignore(_NO_MATTER)
    for field in ("do_resize", "do_rescale"):
        section.must_be(field, True)
    if kind == PATCHES:
        section.must_be("patch_size", patch_size)
        section.ignore(["size"])
        preprocess: dict[str, Any] = {"resize": "patches"}
        preprocess["max_patches"], pixels = section.integer("max_num_patches"), None
    else:
        preprocess, pixels = _resize(section)
    preprocess["interpolation"] = section.choice("resample", _INTERPOLATIONS)
    preprocess |= _normalisation(section)
    section.close()
    return preprocess, pixels


def write_preprocessor(spec: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Gives the preprocessor_config.json of a spec.

    Raises:
        ValueError: the processor cannot do that.
    """
    preprocess = spec["preprocess"]
    if (preprocess["resize"] == "patches") != (kind == PATCHES):
        raise ValueError(
            f"transformers' {kind} cannot preprocess so: preprocess.resize is "
            f"{preprocess['resize']!r}; write target_format='clipjax'"
        )
    if kind == PATCHES:
        size = {"patch_size": spec["image"]["patch_size"]}
        size["max_num_patches"] = preprocess["max_patches"]
    else:
        size = _size(preprocess, spec["image_size"], kind)
    return {
        "image_processor_type": kind,
        "do_resize": True,
        **size,
        "resample": _RESAMPLES[preprocess["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
        "do_convert_rgb": True,
    }


def _size(preprocess: Mapping[str, Any], pixels: int, kind: str) -> dict[str, Any]:
    resized = round(pixels / preprocess.get("crop_fraction", 1.0))
    is_shortest = preprocess["resize"] == "shortest"
    crops = is_shortest or resized != pixels
    can_crop = "crop_size" in DEFAULTS[kind]
    if (is_shortest and "shortest_edge" not in DEFAULTS[kind]["size"]) or (crops and not can_crop):
        raise ValueError(
            f"transformers' {kind} cannot preprocess so: preprocess.resize is "
            f"{preprocess['resize']!r} and crop_fraction {pixels / resized}; write "
            "target_format='clipjax'"
        )
    square = {"height": resized, "width": resized}
    size: dict[str, Any] = {"size": {"shortest_edge": resized} if is_shortest else square}
    if can_crop:
        size |= {"do_center_crop": crops, "crop_size": {"height": pixels, "width": pixels}}
    # Left out, EfficientNet's divides by the deviation a second time.
    return {**size, "include_top": False} if "include_top" in DEFAULTS[kind] else size


def _resize(section: Section) -> tuple[dict[str, Any], int]:
    size, crops = section.get("size"), section.get("do_center_crop", False)
    if not isinstance(crops, bool):
        raise section.error("do_center_crop", "true or false")
    # The first versions of transformers wrote a number, and meant the shorter side.
    resized = size if _is_pixels(size) else _pixels(size, "shortest_edge")
    resize = "shortest"
    if resized is None:
        resized, resize = _pixels(size, "height", "width"), "squash"
    if resized is None:
        allowed = '{"shortest_edge": n} or {"height": n, "width": n}: images here are square'
        raise section.error("size", allowed)
    crop = section.get("crop_size")
    if not crops:
        if resize == "shortest":
            raise section.error("do_center_crop", "true, where size is that of the shorter side")
        return {"resize": resize}, resized
    pixels = crop if _is_pixels(crop) else _pixels(crop, "height", "width")
    if pixels is None or pixels > resized:
        raise section.error(
            "crop_size", f'{{"height": n, "width": n}}, a square, at most size: {resized}'
        )
    found = {"resize": resize}
    return found if pixels == resized else {**found, "crop_fraction": pixels / resized}, pixels


def _is_pixels(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16


def _pixels(size: Any, *names: str) -> int | None:
    """The one number that an object holds under each of these names, and nothing else."""
    if not isinstance(size, Mapping) or set(size) != set(names):
        return None
    first = size[names[0]]
    return first if _is_pixels(first) and all(size[name] == first for name in names) else None


def _normalisation(section: Section) -> dict[str, Any]:
    factor = section.number("rescale_factor")
    if section.get("rescale_offset"):
        # EfficientNet's way to say mean 0.5 and deviation 0.5: pixels / 127.5 - 1.
        section.must_be("do_normalize", False)
        section.ignore(["image_mean", "image_std"])
        if abs(factor * 127.5 - 1) > 1e-6:
            raise section.error("rescale_factor", "1 / 127.5, where rescale_offset is true")
        section.must_be("include_top", False)
        return {"mean": list(HALF), "std": list(HALF)}
    if abs(factor * 255 - 1) > 1e-6:
        raise section.error("rescale_factor", "1 / 255")
    section.must_be("do_normalize", True)
    section.must_be("include_top", False, None)
    return {
        ours: _channels(section, theirs)
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
    }


def _channels(section: Section, name: str) -> list[float]:
    values = section.get(name)
    values = [values] * 3 if isinstance(values, float) else values
    least = 0.0 if name == "image_mean" else 1e-6
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(type(x) in (int, float) and least <= x <= 1e3 for x in values)
    ):
        raise section.error(name, f"three numbers of at least {least}")
    return [float(x) for x in values]
