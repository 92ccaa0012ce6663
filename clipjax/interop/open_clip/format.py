"""The format `open_clip`: OpenAI's archives, OpenCLIP's files and folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging

from clipjax.interop import files, weights
from clipjax.interop.open_clip import tokenizer
from clipjax.interop.open_clip.config_in import check_square, spec_of_config
from clipjax.interop.open_clip.config_out import config_of_spec
from clipjax.interop.open_clip.names import (
    OPENAI_NUMBERS,
    is_buffer,
    leaves,
    names_of_spec,
    plain_names,
)
from clipjax.interop.open_clip.rows import activation_of, settle
from clipjax.interop.open_clip.shapes import draft_of
from clipjax.interop.section import write_json
from clipjax.interop.source import read_source
from clipjax.interop.tensors import LazyTensor, WeightFileError, of_array
from clipjax.interop.weights import NO_HINTS, Hints, Weights
from clipjax.layers.position_embeddings import sincos_2d
from clipjax.strict_json import read_json

CONFIG = "open_clip_config.json"
WEIGHTS = "model.safetensors"
# In the order in which OpenCLIP looks for them.
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    WEIGHTS,
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_TABLE = "visual.positional_embedding"
# Two computations of the same sines in float32 differ by less, learned tables by far more.
_TABLE_TOLERANCE = 1e-5


def recognises(path: Path, hints: Hints = NO_HINTS) -> bool:
    """Whether a path is a file of OpenAI's or OpenCLIP's weights, or a folder with its config."""
    if path.is_dir():
        return (path / CONFIG).is_file()
    if files.file_kind(path) not in ("safetensors", "torch"):
        return False
    try:
        tensors = plain_names(read_source(path, hints).tensors)
    except ValueError:
        return False
    return "logit_scale" in tensors and any(name.startswith("visual.") for name in tensors)


def read(path: Path, hints: Hints) -> Weights:
    """Reads a file or a folder.

    Args:
        path: a state dict (`.safetensors`, `.bin`, `.pt`, `.pth`), one of OpenAI's archives, or a
            folder with an open_clip_config.json, which settles what a file alone leaves open.
        hints: what a person says of a file; a folder needs none.

    Raises:
        WeightFileError: the tensors are not those of a model.
        ValueError: the file leaves open which model it is, or a hint contradicts it.
    """
    folder = path if path.is_dir() else None
    file = files.first_of(path, WEIGHT_FILES) if folder else path
    config = config_of(folder) if folder else None
    source = read_source(file, hints)
    tensors, where = plain_names(source.tensors), str(file)
    draft = draft_of(tensors, where=where)
    tokenizer_files: dict[str, Path] = {}
    if folder:
        spec, tokenizer_files = _spec_of_folder(draft, folder, config, hints)
    elif any(name in source.tensors for name in OPENAI_NUMBERS):
        spec = spec_of_archive(draft, hints, where)
    else:
        spec = settle(draft, hints, where=where)
    tensors = names_of_spec(tensors, spec)
    spec, tensors = fixed_positions(spec, tensors)
    table = leaves(spec)
    return Weights(
        spec=spec,
        leaves=weights.convert(table, tensors, spec, ignored=is_buffer, where=where),
        tokenizer_files=tokenizer_files,
        source=f"open_clip:{path}",
        ignored=tuple(sorted([*filter(is_buffer, tensors), *source.ignored])),
        notes=source.notes,
    )


def write(path: Path, found: Weights) -> None:
    """Writes a folder: model.safetensors, open_clip_config.json and the tokenizer's files.

    For a path that ends in `.safetensors`, that file alone.

    `open_clip.create_model(NAME, pretrained=f"{path}/model.safetensors")` loads it, and so does
    `open_clip.create_model(f"local-dir:{path}")`, which needs no name.

    Raises:
        ValueError: OpenCLIP has no such model.
    """
    spec = found.spec
    config = config_of_spec(spec)
    tensors = weights.export(leaves(spec), found.leaves)
    if spec["image"].get("positions") == "sincos2d":
        tensors[_TABLE] = of_array(_sincos_table(spec))
    is_file = path.suffix == ".safetensors"
    if not is_file:
        path.mkdir(parents=True)
    files.save_safetensors(path if is_file else path / WEIGHTS, tensors, {"format": "pt"})
    if not is_file:
        write_json(path / CONFIG, config)
        tokenizer.write_files(path, found)


def config_of(folder: Path) -> Any:
    """Reads the config beside the weights in a folder; None without one."""
    file = folder / CONFIG
    try:
        config = read_json(file)
    except (ValueError, OSError) as error:
        raise WeightFileError(f"{file} is no JSON file: {error}") from error
    check_square(config, where=str(file))
    return config


def _spec_of_folder(
    draft: Mapping[str, Any], folder: Path, config: Any, hints: Hints
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The spec that a folder's config says, and the tokenizer's files."""
    file = folder / CONFIG
    spec = spec_of_config(draft, config, where=str(file))
    said = {"model": hints.model, "activation": hints.activation}
    known = {"model": spec["name"], "activation": activation_of(spec)}
    for hint, value in said.items():
        if value is not None and value != known[hint]:
            raise ValueError(
                f"{hint}={value!r}: {file} says {known[hint]}; leave it out, or give the "
                "file of weights in place of the folder"
            )
    text = config["model_cfg"]["text_cfg"]
    spec["tokenizer"], needed = tokenizer.tokenizer_of_folder(spec["tokenizer"], text, folder)
    return spec, needed


def spec_of_archive(draft: Mapping[str, Any], hints: Hints, where: str) -> dict[str, Any]:
    """OpenAI's own archives: all its models have the quick GELU."""
    if hints.activation not in (None, "quick_gelu"):
        raise ValueError(
            f"activation={hints.activation!r}: {where} is an archive of OpenAI's, whose models "
            "have quick_gelu; leave it out"
        )
    if hints.model is None:
        return settle(draft, Hints(activation="quick_gelu"), where=where)
    spec = settle(draft, Hints(hints.model), where=where)
    if activation_of(spec) != "quick_gelu":
        raise ValueError(
            f"model={hints.model!r} has {activation_of(spec)}: {where} is an archive of OpenAI's, "
            "whose models have quick_gelu; leave it out"
        )
    return spec


def fixed_positions(
    spec: dict[str, Any], tensors: dict[str, LazyTensor]
) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Leaves CLIPA's table of positions out where it is the computed one, and keeps another."""
    if spec["image"].get("positions") != "sincos2d" or _TABLE not in tensors:
        return spec, tensors
    wanted, found = _sincos_table(spec), tensors[_TABLE]
    if found.shape == wanted.shape:
        error = float(np.abs(found.read().astype(np.float32) - wanted).max())
        if error <= max(_TABLE_TOLERANCE, float(ml_dtypes.finfo(found.dtype).eps)):
            return spec, {name: x for name, x in tensors.items() if name != _TABLE}
    logging.info("%s is not the sines and cosines of %s: it is kept as it is", _TABLE, spec["name"])
    return {**spec, "image": {**spec["image"], "positions": "learned"}}, tensors


def _sincos_table(spec: Mapping[str, Any]) -> np.ndarray:
    """Positions as OpenCLIP keeps them: the class token's row of zeros, then the patches'."""
    side = spec["image_size"] // spec["image"]["patch_size"]
    return np.pad(np.asarray(sincos_2d(side, spec["image"]["width"])), ((1, 0), (0, 0)))
