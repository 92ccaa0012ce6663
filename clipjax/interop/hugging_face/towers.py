"""Directories that hold one tower alone, and a model made of two directories.

A model here has both towers. So an image tower is completed by the text tower of another directory
(`text_from`), and a text tower completes another's image tower.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.interop.section import read_json
from clipjax.interop.source import read_source
from clipjax.interop.tensors import LazyTensor, WeightFileError, of_array
from clipjax.interop.weights import NO_HINTS, Hints
from clipjax.ranges import POSITIVE

# model_type: family and tower.
SINGLE = {
    "clip_vision_model": ("clip", "image"),
    "clip_text_model": ("clip", "text"),
    "siglip_vision_model": ("siglip", "image"),
    "siglip_text_model": ("siglip", "text"),
}
_NAMES = {
    "image": ("vision_model.", "visual_projection."),
    "text": ("text_model.", "text_projection."),
}
_SECTIONS = {"image": "vision_config", "text": "text_config"}
_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_SCALES = {"clip": ("logit_scale",), "siglip": ("logit_scale", "logit_bias")}


@dataclasses.dataclass(frozen=True)
class Joined:
    """A model's config and tensors, of one directory or of two.

    Attributes:
        config: as of a whole model's config.json.
        where: the file or files that say it, for messages.
        tensors: of both towers.
        ignored: names that `ignore` left out.
        notes: what to say of it.
    """

    config: dict[str, Any]
    where: str
    tensors: Mapping[str, LazyTensor]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def refuse_alone(config: Mapping[str, Any], path: Path) -> None:
    """Refuses a directory of one tower.

    Raises:
        WeightFileError: says what to add.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in SINGLE:
        return
    family, tower = SINGLE[kind]
    whole = _CLASSES[family]
    if tower == "image":
        advice = (
            "add text_from=DIRECTORY, of a text tower of the same embedding space or of the "
            f"whole {whole} that it was made from"
        )
    else:
        advice = (
            "give it as text_from=, and as source= the directory of its image tower or of the "
            f"whole {whole}"
        )
    raise WeightFileError(
        f"{path} is {'an' if tower == 'image' else 'a'} {tower} tower alone ({kind}), and a model "
        f"here has both: {advice}"
    )


def join(image_path: Path, image_file: Path, text_file: Path, hints: Hints) -> Joined:
    """Makes one model of the image tower of one directory and the text tower of another.

    A tensor that its own directory lacks, such as a projection or the scale, is the other's.

    Args:
        image_path: directory of the image tower.
        image_file: its file of weights.
        text_file: the file of weights in the directory `hints.text_from`.
        hints: of the names in `image_file`, and `logit_scale`.

    Raises:
        WeightFileError: the directories are of two families, lack a tower, or a part is in neither.
        ValueError: `hints.logit_scale` is wrong or has no effect.
    """
    paths = {"image": image_path, "text": Path(str(hints.text_from))}
    configs = {tower: read_json(path / "config.json") for tower, path in paths.items()}
    family = _family(configs, paths)
    source = read_source(image_file, dataclasses.replace(hints, text_from=None))
    other = read_source(text_file, NO_HINTS)
    held = {"image": source.tensors, "text": other.tensors}
    tensors, notes = _parts(held, configs, paths, family, hints)
    config: dict[str, Any] = {"model_type": family}
    for tower, each in configs.items():
        is_single = each["model_type"] in SINGLE
        config[_SECTIONS[tower]] = each if is_single else each.get(_SECTIONS[tower]) or {}
    if family == "clip":
        config["projection_dim"] = int(tensors["visual_projection.weight"].shape[0])
    notes = [*source.notes, f"the text tower of {paths['text']}", *other.notes, *notes]
    where = f"{paths['image']} and {paths['text']}: config.json"
    return Joined(config, where, tensors, source.ignored, tuple(notes))


def _family(configs: Mapping[str, Mapping[str, Any]], paths: Mapping[str, Path]) -> str:
    families = {}
    for tower, config in configs.items():
        kind = config.get("model_type")
        if isinstance(kind, str) and kind in SINGLE:
            family, held = SINGLE[kind]
            if held != tower:
                raise WeightFileError(
                    f"{paths[tower]} is the {held} tower alone; the {tower} tower is asked of it"
                )
        elif isinstance(kind, str) and kind in _CLASSES:
            family = kind
        else:
            raise WeightFileError(
                f"{paths[tower]}: model_type is {str(kind)[:80]!r}; towers are put together of "
                f"{', '.join([*_CLASSES, *SINGLE])}"
            )
        families[tower] = family
    if families["image"] != families["text"]:
        raise WeightFileError(
            f"{paths['image']} is of {families['image']}, {paths['text']} of {families['text']}: "
            "two towers of one family are needed"
        )
    return families["image"]


def _parts(
    held: Mapping[str, Mapping[str, LazyTensor]],
    configs: Mapping[str, Mapping[str, Any]],
    paths: Mapping[str, Path],
    family: str,
    hints: Hints,
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Each tower's tensors of its directory; what is there alone is the other's."""
    tensors: dict[str, LazyTensor] = {}
    notes = []
    for tower, other in (("image", "text"), ("text", "image")):
        prefixes = _NAMES[tower]
        tensors |= {name: x for name, x in held[tower].items() if name.startswith(prefixes)}
        if configs[tower]["model_type"] in SINGLE:
            known = (*prefixes, *_SCALES[family])
            tensors |= {name: x for name, x in held[tower].items() if not name.startswith(known)}
        projection = f"{prefixes[1]}weight"
        if family == "clip" and projection not in tensors:
            if projection not in held[other]:
                raise WeightFileError(
                    f"{paths[tower]} has no {projection}, and neither has {paths[other]}: without "
                    "it there are no embeddings to compare; take the ...WithProjection's files"
                )
            tensors[projection] = held[other][projection]
            notes.append(f"{projection} of {paths[other]}")
    for name in _SCALES[family]:
        found = [tower for tower in ("image", "text") if name in held[tower]]
        if found and hints.logit_scale is not None:
            raise ValueError(
                f"logit_scale={hints.logit_scale}: {paths[found[0]]} holds it; leave it out"
            )
        if found:
            tensors[name] = held[found[0]][name]
        elif family == "clip" and hints.logit_scale is not None:
            if not POSITIVE.accepts(hints.logit_scale):
                raise ValueError(f"logit_scale={hints.logit_scale}: expected a positive number")
            tensors[name] = of_array(np.array(math.log(hints.logit_scale), np.float32))
        else:
            raise WeightFileError(
                f"neither {paths['image']} nor {paths['text']} holds {name}, by which embeddings "
                "are compared: give the whole model as one of the two"
                + (", or logit_scale=NUMBER (100 in OpenAI's)" if family == "clip" else "")
            )
    return tensors, notes
