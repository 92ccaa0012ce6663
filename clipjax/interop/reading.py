"""Reading weights of any format: recognised by the files, checked, a tensor read when asked for."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from clipjax.checkpoint import choose_step, needs_file
from clipjax.data.storage.files import local_path
from clipjax.interop.formats import FORMATS, named_format
from clipjax.interop.shapes import expected_shapes
from clipjax.interop.source import read_source
from clipjax.interop.tensors import WeightFileError
from clipjax.interop.weights import NO_HINTS, Hints, Weights

# What the names of a tower start with, in OpenCLIP's and transformers' files.
_TOWERS = {
    "an image": ("visual.", "vision_model.", "visual_projection."),
    "a text": ("text.", "text_model.", "text_projection", "transformer.", "token_", "pos", "ln_"),
}


def read_weights(source: str | os.PathLike[str], hints: Hints) -> tuple[str, Weights]:
    """Reads a model's weights; nothing but names, shapes and small files, until a tensor is asked.

    Returns:
        The format, and the weights, whose leaves are those of the model that their spec names.

    Raises:
        WeightFileError: the source is no weights, is damaged, or is not what it says.
        ValueError: a hint is needed or wrong.
    """
    path = local_path(source, way="download it, or mount the bucket")
    found = recognise(path, hints)
    weights = named_format(found).read(path, hints)
    if found != "clipjax":  # which knows the SHA-256 of the file that it wants
        weights = _with_tokenizer(weights, hints.tokenizer)
    _check_leaves(weights)
    return found, weights


def recognise(source: Path, hints: Hints = NO_HINTS) -> str:
    """Names the format of a file or directory.

    Raises:
        WeightFileError: it is of none; the message says what it is, as far as that can be told.
        ValueError: a hint is for another format.
    """
    if not (source.is_file() or source.is_dir()):  # a pipe would be waited for
        what = "neither a file nor a directory" if source.exists() else "no such file or directory"
        raise WeightFileError(f"{source}: {what}")
    if hints.format is not None:
        named_format(hints.format)
        return hints.format
    for name, entry in FORMATS.items():
        if entry.recognises(source, hints):
            _check_towers(name, source, hints)
            return name
    formats = ", ".join(FORMATS)
    if source.is_dir():
        if "checkpoints" in (source.name, *(path.name for path in source.iterdir())):
            choose_step(source)  # says that no checkpoint has been saved yet
        inside = ", ".join(sorted(path.name for path in source.iterdir())[:8]) or "nothing"
        raise WeightFileError(
            f"{source}: a directory of none of the formats {formats}; it holds {inside}"
        )
    # A damaged file says here what is wrong with it, and a hint that it does not fit.
    tensors = read_source(source, hints).tensors
    names = ", ".join(list(tensors)[:4]) or "none"
    if tower := _only_tower(tensors):
        raise WeightFileError(
            f"{source} holds {tower} tower alone, and a model here has both: take the file of the "
            "whole model, or put towers together of transformers' directories (text_from=); its "
            f"first tensors are {names}"
        )
    raise WeightFileError(
        f"{source}: {len(tensors)} tensors with names of none of the formats {formats}; the first "
        f"are {names} (strip_prefix= and rename= give other names)"
    )


def _check_towers(found: str, source: Path, hints: Hints) -> None:
    if hints.text_from is not None and found != "hf":
        raise ValueError(
            f"text_from= completes a directory of Hugging Face's, {source} is of {found}; leave "
            "it out"
        )
    if hints.logit_scale is not None and hints.text_from is None:
        raise ValueError("logit_scale= is for two towers (text_from=) that come without one")


def _only_tower(names: Iterable[str]) -> str | None:
    names = [name for name in names if name not in ("logit_scale", "logit_bias")]
    for tower, prefixes in _TOWERS.items():
        if names and all(name.startswith(prefixes) for name in names):
            return tower
    return None


def _with_tokenizer(weights: Weights, file: str | os.PathLike[str] | None) -> Weights:
    if file is None:
        return weights
    path, spec = Path(file), weights.spec
    if not path.is_file():
        raise ValueError(f"tokenizer={str(path)!r}: no such file")
    if not needs_file(spec["tokenizer"]):
        raise ValueError(
            f"tokenizer={str(path)!r}: the model's tokenizer is {spec['tokenizer']['name']!r} and "
            "is here already; leave it out"
        )
    tokenizer = {**spec["tokenizer"], "model": path.name}
    with path.open("rb") as opened:
        is_json = opened.read(64).lstrip().startswith(b"{")
    if tokenizer["name"] == "sentencepiece" and is_json:
        # The same vocabulary in transformers' other form, whose end of text is in the file.
        kept = {name: tokenizer[name] for name in ("pad_id", "cleaning") if name in tokenizer}
        tokenizer = {"name": "tokenizer_json", "model": path.name, **kept}
    spec = {**spec, "tokenizer": tokenizer}
    return dataclasses.replace(weights, spec=spec, tokenizer_files={path.name: path})


def _check_leaves(weights: Weights) -> None:
    """The last look at what a format's reader gives, before a number is read."""
    wanted = expected_shapes(weights.spec, weights.plugins)
    found = {name: tensor.shape for name, tensor in weights.leaves.items()}
    if found != wanted:
        odd = sorted(set(found.items()) ^ set(wanted.items()))
        raise WeightFileError(
            f"{weights.source}: {len(odd)} leaves are not those of the model "
            f"{weights.spec['name']!r}, the first is {odd[0][0]} of shape {odd[0][1]}"
        )
