"""A directory of transformers: recognised, read, written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipjax.checkpoint import needs_file
from clipjax.config import to_plain
from clipjax.interop.files import file_kind, first_of, save_safetensors
from clipjax.interop.hugging_face.comparison import different_numbers, own_spec, row_of
from clipjax.interop.hugging_face.config_json import FAMILIES, OWN_FIELD, read_config, write_config
from clipjax.interop.hugging_face.preprocessor import read_preprocessor, write_preprocessor
from clipjax.interop.hugging_face.shapes import draft_of, has_both_towers
from clipjax.interop.hugging_face.tokenizer_files import check_tokenizer, read_tokenizer
from clipjax.interop.hugging_face.tokenizer_writing import write_tokenizer
from clipjax.interop.hugging_face.towers import Joined, join, refuse_alone
from clipjax.interop.open_clip.rows import settle
from clipjax.interop.section import read_json, write_json
from clipjax.interop.source import read_source
from clipjax.interop.tensors import WeightFileError
from clipjax.interop.weights import NO_HINTS, Hints, Weights, convert, export
from clipjax.models.zoo import MODELS
from clipjax.ranges import nearest

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# The first that is there is read.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def recognises(path: Path, hints: Hints = NO_HINTS) -> bool:
    """Whether a path is a directory with a model_type in config.json, or a file of both towers."""
    try:
        if path.is_dir():
            return "model_type" in read_json(path / CONFIG)
        kinds = ("safetensors", "torch", "index")
        return file_kind(path) in kinds and has_both_towers(read_source(path, hints).tensors)
    except ValueError:
        return False


def read(path: Path, hints: Hints) -> Weights:
    """Reads a directory of a class of FAMILIES, or a file of one.

    Args:
        path: the directory; or its file of weights, with the config.json beside it, or without,
            where shapes and hints have to say what it would.
        hints: `model` and `activation` are only checked where there is a config.json: it says both.

    Raises:
        WeightFileError: a file is missing, damaged, or says something that is not supported.
        ValueError: a hint is wrong or needed.
    """
    if path.is_dir():
        return _read_directory(path, first_of(path, WEIGHT_FILES), hints)
    if recognises(path.parent):
        return _read_directory(path.parent, path, hints)
    if hints.text_from is not None:
        raise ValueError(f"text_from=: {path} has no {CONFIG} beside it; give the directory")
    return _read_file(path, hints)


def _read_file(path: Path, hints: Hints) -> Weights:
    """Reads a file alone: its shapes say what they can, the zoo and the hints the rest."""
    source = read_source(path, hints)
    kind, draft = draft_of(source.tensors, where=str(path))
    family, spec = FAMILIES[kind], settle(draft, hints, where=str(path), config=CONFIG)
    return Weights(
        spec,
        convert(family.leaves(spec), source.tensors, spec, ignored=family.ignored, where=str(path)),
        source=f"hf {path}",
        ignored=tuple(sorted([*filter(family.ignored, source.tensors), *source.ignored])),
        notes=source.notes,
    )


def _read_directory(path: Path, file: Path, hints: Hints) -> Weights:
    joined = _joined(path, file, hints)
    kind, spec, own = read_config(joined.config, joined.where)
    family = FAMILIES[kind]
    text_path = Path(hints.text_from or path)
    spec["tokenizer"], files, length = read_tokenizer(text_path, kind, spec["text"])
    if "text.context_length" in family.IN_OTHER_FILES and length is not None:
        # As many as the table has is what BERT's files say that nobody changed, and not a choice.
        rows = spec["text"]["num_positions"] - spec["text"].get("position_offset", 0)
        if length < rows or (length == rows and own is not None):
            spec["text"]["context_length"] = length
    spec = _with_preprocessor(spec, path, kind)
    if own is not None:
        spec = own_spec(own, spec, f"{path / CONFIG}: {OWN_FIELD}")
    else:
        spec = row_of(spec) or {**spec, "name": path.absolute().name}
    _check_hints(spec, hints, path)
    if not needs_file(spec["tokenizer"]):
        check_tokenizer(spec, files, str(text_path))
    tensors = joined.tensors
    if hasattr(family, "plain_names"):  # versions of transformers that name them otherwise
        tensors = family.plain_names(tensors)
    leaves = convert(family.leaves(spec), tensors, spec, ignored=family.ignored, where=str(file))
    ignored = tuple(sorted([*filter(family.ignored, tensors), *joined.ignored]))
    return Weights(spec, leaves, files, f"hf {path}", ignored, notes=joined.notes)


def _joined(path: Path, file: Path, hints: Hints) -> Joined:
    """The config and the tensors of a directory, or of two."""
    if hints.text_from is not None:
        other = Path(hints.text_from)
        if not recognises(other):
            raise ValueError(
                f"text_from={str(other)!r}: no directory with a {CONFIG} of a model_type"
            )
        return join(path, file, first_of(other, WEIGHT_FILES), hints)
    config = read_json(path / CONFIG)
    refuse_alone(config, path)
    source = read_source(file, hints)
    return Joined(config, str(path / CONFIG), source.tensors, source.ignored, source.notes)


def write(path: Path, weights: Weights) -> None:
    """Writes a directory that transformers' `from_pretrained` loads.

    Raises:
        ValueError: transformers has no such model; the field is named.
    """
    kind, config = write_config(weights.spec)
    spec, family = weights.spec, FAMILIES[kind]
    preprocessor = write_preprocessor(spec, family.IMAGE_PROCESSOR)
    tensors = {**export(family.leaves(spec), weights.leaves), **family.unused(spec)}
    path.mkdir()
    config[OWN_FIELD]["tokenizer"] = write_tokenizer(path, kind, weights)
    write_json(path / PREPROCESSOR, preprocessor)
    write_json(path / CONFIG, config)
    # transformers reads only archives that name torch as the framework of their layout.
    save_safetensors(path / WEIGHT_FILES[0], tensors, {"format": "pt"})


def _with_preprocessor(spec: dict[str, Any], path: Path, kind: str) -> dict[str, Any]:
    """The spec with what preprocessor_config.json says; CLIP's may be absent and is OpenAI's."""
    file, family = path / PREPROCESSOR, FAMILIES[kind]
    if not file.is_file():
        if kind == "clip":
            return spec
        raise WeightFileError(f"{path} has no {PREPROCESSOR}, which says how pixels are scaled")
    preprocess, pixels = read_preprocessor(
        read_json(file), str(file), family.IMAGE_PROCESSOR, spec["image"].get("patch_size")
    )
    if pixels is None:
        return {**spec, "preprocess": preprocess}
    if "image_size" not in family.IN_OTHER_FILES and pixels != spec["image_size"]:
        raise WeightFileError(
            f"{file} gives {pixels} pixels, vision_config.image_size is {spec['image_size']}"
        )
    return {**spec, "preprocess": preprocess, "image_size": pixels}


def _check_hints(spec: Mapping[str, Any], hints: Hints, path: Path) -> None:
    found = {spec[tower].get("activation") for tower in ("image", "text")} - {None}
    if hints.activation is not None and found != {hints.activation}:
        raise WeightFileError(
            f"activation={hints.activation!r}: {path / CONFIG} says {' and '.join(sorted(found))}"
        )
    if hints.model is None:
        return
    if hints.model not in MODELS:
        raise ValueError(
            f"model={hints.model!r} is no row of the zoo; the nearest are "
            f"{nearest(hints.model, MODELS)} (`clipjax models` lists all)"
        )
    row = {**to_plain(MODELS[hints.model]), "tokenizer": spec["tokenizer"]}
    wrong = [f"{field} {a!r}, not {b!r}" for field, a, b in different_numbers(spec, row)]
    if wrong:
        raise WeightFileError(f"{path} is not {hints.model}: it has {'; '.join(wrong[:8])}")
