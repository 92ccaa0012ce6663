"""What the names and shapes of transformers' tensors say of a model, where no config.json does."""

from collections.abc import Iterable, Mapping
from typing import Any

from clipjax.interop.open_clip.shapes import Reader
from clipjax.interop.tensors import LazyTensor, WeightFileError

_TOKENS = "text_model.embeddings.token_embedding.weight"
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_IMAGE_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_TEXT_POSITIONS = "text_model.embeddings.position_embedding.weight"


def has_both_towers(names: Iterable[str]) -> bool:
    """Whether names are those of a CLIPModel or SiglipModel."""
    return {_TOKENS, _PATCHES} <= set(names)


def draft_of(tensors: Mapping[str, LazyTensor], *, where: str) -> tuple[str, dict[str, Any]]:
    """Reads the sizes of a model off its tensors.

    Returns:
        The family, a key of FAMILIES, and the part of a spec that shapes say.

    Raises:
        WeightFileError: it is another family, or a tensor is missing or has other axes.
    """
    reader = Reader(tensors, where)
    if len(getattr(tensors[_PATCHES], "shape", ())) == 4:
        if "vision_model.pre_layrnorm.weight" in tensors:
            return "clip", _clip(reader)
        if "vision_model.head.probe" in tensors:
            return "siglip", _siglip(reader)
    raise WeightFileError(
        f"{where} has transformers' names and no config.json beside it: of such files CLIPModel's "
        "and SiglipModel's are known; give the directory with its config.json"
    )


def _clip(reader: Reader) -> dict[str, Any]:
    image, size = _image(reader, class_rows=1)
    return {
        "embed_dim": reader.shape("visual_projection.weight", 2)[0],
        "image_size": size,
        "image": {**image, "pooling": "cls", "pre_norm": True},
        "text": _text(reader, "causal_transformer", "eot"),
        "text_projection": "linear",
        "logit_bias": None,
    }


def _siglip(reader: Reader) -> dict[str, Any]:
    image, size = _image(reader, class_rows=0)
    return {
        "embed_dim": image["width"],
        "image_size": size,
        "image": {**image, "pooling": "map", "pre_norm": False, "patch_bias": True},
        "text": _text(reader, "bidirectional_transformer", "last"),
        "image_projection": "none",
        "text_projection": "linear_bias",
        "logit_bias": -10.0,
    }


def _image(reader: Reader, *, class_rows: int) -> tuple[dict[str, Any], int]:
    """The tower, and the pixels of a side."""
    positions = reader.shape(_IMAGE_POSITIONS, 2)[0] - class_rows
    tower, size = reader.vit(_PATCHES, positions, _IMAGE_POSITIONS)
    return {**tower, **reader.blocks("vision_model.encoder.layers", "mlp.fc1")}, size


def _text(reader: Reader, name: str, pooling: str) -> dict[str, Any]:
    vocab_size, width = reader.shape(_TOKENS, 2)
    return {
        "name": name,
        "vocab_size": vocab_size,
        "context_length": reader.shape(_TEXT_POSITIONS, 2)[0],
        "width": width,
        **reader.blocks("text_model.encoder.layers", "mlp.fc1"),
        "pooling": pooling,
    }
