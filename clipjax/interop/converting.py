"""From any format to any other: recognise, read, check, write beside the target, rename."""

import dataclasses
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from clipjax.checkpoint import choose_step, needs_file
from clipjax.data.storage.files import local_path
from clipjax.files import sha256_of_file
from clipjax.interop.files import file_kind
from clipjax.interop.files.atomic import check_new, new_path
from clipjax.interop.formats import FORMATS, WRITTEN
from clipjax.interop.shapes import expected_shapes
from clipjax.interop.source import read_source
from clipjax.interop.tensors import WeightFileError
from clipjax.interop.weights import NO_HINTS, Hints, Weights

FREE_SPACE_FACTOR = 1.05
# What the names of a tower start with, in OpenCLIP's and transformers' files.
_TOWERS = {
    "an image": ("visual.", "vision_model.", "visual_projection."),
    "a text": ("text.", "text_model.", "text_projection", "transformer.", "token_", "pos", "ln_"),
}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion found and did.

    Attributes:
        source_format: of FORMATS.
        model: name in the spec.
        parameters: count, running statistics excluded.
        statistics: count of running statistics.
        ignored: names of tensors that are no parameters, or that a person left out.
        notes: what was done to read the source, one line each: the step, the names.
        sha256: of the files of weights that were read, by name.
        target: what was written.
        target_bytes: size of it.
        lacks_tokenizer: the target takes no texts: the tokenizer's file was not at hand.
    """

    source_format: str
    model: str
    parameters: int
    statistics: int
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: dict[str, str]
    target: Path
    target_bytes: int
    lacks_tokenizer: bool


def convert_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    target_format: str,
    *,
    hints: Hints | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Converts weights; the target appears when it is whole, or not at all.

    Args:
        source: a file or directory of any of FORMATS.
        target: a path that does not exist.
        target_format: one of WRITTEN.
        hints: what the files cannot say.
        tokenizer: file of the tokenizer's vocabulary, where the source comes without it.

    Raises:
        WeightFileError: the source is no weights, is damaged, or is not what it says.
        ValueError: a bad argument, or a hint is needed or wrong.
        OSError: reading or writing failed.
    """
    source = local_path(source, way="copy it here, or mount the bucket")
    target = local_path(target)
    if target_format not in WRITTEN:
        raise ValueError(f"--format {target_format!r}: formats to write are {', '.join(WRITTEN)}")
    check_new(target)
    hints = dataclasses.replace(hints or Hints(), tokenizer=tokenizer)
    found = recognise(source, hints)
    if hints.text_from is not None and found != "hf":
        raise ValueError(
            f"--from_text completes a directory of Hugging Face's, {source} is of {found}; leave "
            "the flag out"
        )
    if hints.logit_scale is not None and hints.text_from is None:
        raise ValueError("--logit_scale is for two towers (--from_text) that come without one")
    weights = FORMATS[found].read(source, hints)
    if found != "clipjax":  # which knows the SHA-256 of the file that it wants
        weights = _with_tokenizer(weights, tokenizer)
    _check_leaves(weights)
    _check_space(weights, target)
    digests = _digests(source, found)
    if hints.lora is not None:
        digests |= _digests(Path(hints.lora), "lora")
    if hints.text_from is not None:
        other = _digests(Path(hints.text_from), found)
        digests |= {f"{name} of --from_text": digest for name, digest in other.items()}
    summary = ", ".join(f"{name} (SHA-256 {digest})" for name, digest in digests.items())
    weights = dataclasses.replace(weights, source=f"{found}: {summary}")
    write = FORMATS[target_format].write
    assert write is not None
    with new_path(target) as temporary:
        write(temporary, weights)
    sizes = {name: math.prod(tensor.shape) for name, tensor in weights.leaves.items()}
    statistics = sum(n for name, n in sizes.items() if name.startswith("batch_stats/"))
    return Conversion(
        source_format=found,
        model=weights.spec["name"],
        parameters=sum(sizes.values()) - statistics,
        statistics=statistics,
        ignored=weights.ignored,
        notes=weights.notes,
        sha256=digests,
        target=target,
        target_bytes=sum(file.stat().st_size for file in _files(target)),
        lacks_tokenizer=needs_file(weights.spec["tokenizer"]),
    )


def recognise(source: Path, hints: Hints = NO_HINTS) -> str:
    """Names the format of a file or directory.

    Raises:
        WeightFileError: it is of none; the message says what it is, as far as that can be told.
    """
    if not (source.is_file() or source.is_dir()):  # a pipe would be waited for
        what = "neither a file nor a directory" if source.exists() else "no such file or directory"
        raise WeightFileError(f"{source}: {what}")
    for name, entry in FORMATS.items():
        if entry.recognises(source, hints):
            return name
    formats = ", ".join(FORMATS)
    if source.is_dir():
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
            "whole model, or put towers together of transformers' directories (--from_text); its "
            f"first tensors are {names}"
        )
    raise WeightFileError(
        f"{source}: {len(tensors)} tensors with names of none of the formats {formats}; the first "
        f"are {names}"
    )


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
        raise ValueError(f"--tokenizer {path}: no such file")
    if not needs_file(spec["tokenizer"]):
        raise ValueError(
            f"--tokenizer {path}: the model's tokenizer is {spec['tokenizer']['name']!r} and is "
            "here already; leave the flag out"
        )
    tokenizer = {**spec["tokenizer"], "model": path.name}
    if tokenizer["name"] == "sentencepiece" and _is_json(path):
        # The same vocabulary in transformers' other form, whose end of text is in the file.
        kept = {name: tokenizer[name] for name in ("pad_id", "cleaning") if name in tokenizer}
        tokenizer = {"name": "tokenizer_json", "model": path.name, **kept}
    spec = {**spec, "tokenizer": tokenizer}
    return dataclasses.replace(weights, spec=spec, tokenizer_files={path.name: path})


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def _check_leaves(weights: Weights) -> None:
    """The last look at what a format's reader gives, before a byte is written."""
    wanted = expected_shapes(weights.spec, weights.plugins)
    found = {name: tensor.shape for name, tensor in weights.leaves.items()}
    if found != wanted:
        odd = sorted(set(found.items()) ^ set(wanted.items()))
        raise WeightFileError(
            f"{weights.source}: {len(odd)} leaves are not those of the model "
            f"{weights.spec['name']!r}, the first is {odd[0][0]} of shape {odd[0][1]}"
        )


def _check_space(weights: Weights, target: Path) -> None:
    needed = int(FREE_SPACE_FACTOR * sum(tensor.nbytes for tensor in weights.leaves.values()))
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise OSError(
            f"no space for {target}: it needs {needed / 2**20:.0f} MiB, "
            f"{free / 2**20:.0f} MiB are free"
        )


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.is_file())


def _digests(source: Path, kind: str) -> dict[str, str]:
    """SHA-256 of the source: of each file of weights, or of the manifest that vouches for all."""
    paths = [source]
    if kind == "clipjax":
        paths = [choose_step(source).step_dir / "manifest.json"]
    elif source.is_dir():
        paths = [x for x in sorted(source.iterdir()) if x.is_file() and file_kind(x) is not None]
    return {path.name: sha256_of_file(path) for path in paths}
