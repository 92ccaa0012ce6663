"""Reading a file of big_vision's kind: its model spec is told by the names and shapes in it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from clipjax.config import merge
from clipjax.interop.big_vision.names import leaves, plain_names
from clipjax.interop.files import file_kind
from clipjax.interop.source import read_source
from clipjax.interop.tensors import LazyTensor, WeightFileError
from clipjax.interop.weights import NO_HINTS, Hints, Weights, convert
from clipjax.models import MODELS
from clipjax.models.zoo import clipa, siglip, siglip_naflex

# family: its rows, and where its text tower's blocks stand
_FAMILIES = {
    "SigLIP": (siglip.ROWS, "txt/Encoder_0"),
    "SigLIP 2 NaFlex": (siglip_naflex.ROWS, "txt/Encoder_0"),
    "CLIPA or OpenVision": (clipa.ROWS, "txt/Transformer"),
}


def recognises_big_vision(path: Path, hints: Hints = NO_HINTS) -> bool:
    """Whether a file holds two towers in big_vision's names."""
    if not path.is_file() or file_kind(path) != "npz":
        return False
    try:
        return is_big_vision(plain_names(read_source(path, hints).tensors)[0])
    except ValueError:
        return False


def read_big_vision(path: Path, hints: Hints) -> Weights:
    """Reads SigLIP, SigLIP 2, CLIPA or OpenVision from an `.npz`, scanned or not.

    The optimizer's leaves, if there are any, are left.

    Raises:
        WeightFileError: the file is damaged or holds something else.
        ValueError: the file cannot say which model it is, and no hint does.
    """
    source = read_source(path, hints)
    parameters, ignored = plain_names(source.tensors)
    spec = spec_of(parameters, hints, where=str(path))
    spec["name"] = spec["name"] or path.stem
    table = leaves(spec, flat_attention=has_flat_attention(parameters))
    if ignored:
        logging.info("%s: %d leaves of the optimizer and the clock left", path, len(ignored))
    return Weights(
        spec=spec,
        leaves=convert(table, parameters, spec, where=str(path)),
        source=f"big_vision {path}",
        ignored=(*ignored, *source.ignored),
        notes=source.notes,
    )


def is_big_vision(names: Iterable[str]) -> bool:
    """Whether plain names are those of a two-tower model of big_vision's kind."""
    names = set(names)
    return {"t", "img/embedding/kernel", "txt/Embed_0/embedding"} <= names


def has_flat_attention(parameters: Mapping[str, LazyTensor]) -> bool:
    """Whether attention's kernels are matrices."""
    name = "img/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    return name in parameters and len(parameters[name].shape) == 2


def spec_of(
    parameters: Mapping[str, LazyTensor], hints: Hints, *, where: str = "the file"
) -> dict[str, Any]:
    """Finds the spec of a file: sizes are its own, constants those of a row of the zoo.

    The row is the one of equal sizes, or the one that `hints.model` names.

    Raises:
        WeightFileError: the file is no two-tower model of big_vision's kind.
        ValueError: no row has these sizes, or several have, and no hint decides; or the hint is
            of another family.
    """
    if not is_big_vision(parameters):
        raise WeightFileError(
            f"{where} is no two-tower model in big_vision's names: it lacks t, "
            "img/embedding/kernel or txt/Embed_0/embedding"
        )
    family = _family(parameters)
    rows, stack = _FAMILIES[family]
    sizes = _sizes(parameters, stack, where)
    # How the text is projected is the file's to say.
    free = {k: {**row, "text_projection": sizes["text_projection"]} for k, row in rows.items()}
    candidates = [name for name, row in free.items() if merge(row, _changes(row, sizes)) == row]
    name = _row_name(rows, candidates, sizes, hints, f"{where} ({family})")
    _check_heads(MODELS[name], sizes, where)
    spec = merge(MODELS[name], _changes(MODELS[name], sizes))
    if spec != MODELS[name]:
        spec["name"] = ""
    if hints.activation is not None:
        activation = {"activation": hints.activation}
        spec = merge(spec, {"image": activation, "text": activation})
    return spec


def _family(parameters: Mapping[str, LazyTensor]) -> str:
    if "img/MAPHead_0/probe" not in parameters:
        return "CLIPA or OpenVision"
    is_row_of_numbers = len(parameters["img/embedding/kernel"].shape) == 2
    return "SigLIP 2 NaFlex" if is_row_of_numbers else "SigLIP"


def _row_name(
    rows: Mapping[str, Any], candidates: list[str], sizes: dict[str, Any], hints: Hints, where: str
) -> str:
    if hints.model is not None:
        allowed = candidates or list(rows)
        if hints.model not in allowed:
            raise ValueError(
                f"model={hints.model!r} does not fit {where}; allowed are {', '.join(allowed)}"
            )
        return hints.model
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(
            f"{where} has the sizes of {', '.join(candidates)}, which differ in what a file "
            "cannot say (pixels); add model= with one of them"
        )
    raise ValueError(
        f"{where} has sizes of no published model ({sizes['image']}, {sizes['text']}): add model= "
        "with a row whose tokenizer, preprocessing and scale rule it shares; sizes are the file's"
    )


def _check_heads(row: Mapping[str, Any], sizes: Mapping[str, Any], where: str) -> None:
    for tower in ("image", "text"):
        width, num_heads = sizes[tower]["width"], sizes[tower]["num_heads"]
        if num_heads is None and width != row[tower]["width"]:
            raise ValueError(
                f"{where} keeps attention as matrices, which do not say how many heads width "
                f"{width} has; add model= with a row of that width, not {row['name']}"
            )


def _sizes(parameters: Mapping[str, LazyTensor], stack: str, where: str) -> dict[str, Any]:
    """What the file says, in the fields of a spec; `grid` is the positions of a side, or None."""
    try:
        kernel = parameters["img/embedding/kernel"].shape
        positions = parameters.get("img/pos_embedding")
        vocab_size, _ = parameters["txt/Embed_0/embedding"].shape
        text = _tower(parameters, stack) | {
            "vocab_size": vocab_size,
            "context_length": parameters["txt/pos_embedding"].shape[-2],
        }
        image = _tower(parameters, "img/Transformer") | {"patch_size": kernel[0]}
        if len(kernel) == 2:
            image["patch_size"] = round((kernel[0] / 3) ** 0.5)
            image["position_side"] = parameters["img/pos_embedding"].shape[0]
        embed_dim = image["width"]
        if "img/head/kernel" in parameters:
            embed_dim = parameters["img/head/kernel"].shape[-1]
    except (KeyError, IndexError, ValueError) as error:
        raise WeightFileError(
            f"{where} is no whole two-tower model: {error} is missing or has another shape"
        ) from error
    grid = image.get("position_side")
    if grid is None and positions is not None:
        grid = round(positions.shape[-2] ** 0.5)
        if grid * grid != positions.shape[-2]:
            raise WeightFileError(
                f"{where}: img/pos_embedding has {positions.shape[-2]} positions, which are no "
                "square; only square images are supported"
            )
    if len(kernel) == 4 and kernel[0] != kernel[1]:
        raise WeightFileError(
            f"{where}: img/embedding/kernel has patches of {kernel[0]} x {kernel[1]} pixels; only "
            "square ones are supported"
        )
    projection = "linear_bias" if "txt/head/bias" in parameters else "linear"
    projection = projection if "txt/head/kernel" in parameters else "none"
    sizes = {"embed_dim": embed_dim, "grid": grid, "image": image, "text": text}
    return {**sizes, "text_projection": projection}


def _tower(parameters: Mapping[str, LazyTensor], stack: str) -> dict[str, int | None]:
    first = f"{stack}/encoderblock_0"
    query = parameters[f"{first}/MultiHeadDotProductAttention_0/query/kernel"].shape
    width, mlp_dim = parameters[f"{first}/MlpBlock_0/Dense_0/kernel"].shape
    prefix = f"{stack}/encoderblock_"
    blocks = {x.removeprefix(prefix).split("/")[0] for x in parameters if x.startswith(prefix)}
    # A matrix does not say how many heads it has; None leaves it to the row.
    num_heads = query[1] if len(query) == 3 else None
    return {"width": width, "depth": len(blocks), "num_heads": num_heads, "mlp_dim": mlp_dim}


def _changes(row: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that give a row the file's sizes."""
    changes = {key: sizes[key] for key in ("embed_dim", "image", "text")}
    patch_size, grid = sizes["image"]["patch_size"], sizes["grid"]
    # Pixels beyond the last whole patch are cut off: 27 patches of 14 stand for 378 to 391.
    if grid is not None and row["image_size"] // patch_size != grid:
        changes["image_size"] = grid * patch_size
    if row.get("text_projection", "linear") != sizes["text_projection"]:
        changes["text_projection"] = sizes["text_projection"]
    return changes
