"""What the names and shapes of OpenCLIP's tensors say of a model: all its sizes."""

import math
import re
from collections.abc import Mapping
from typing import Any

from clipjax.interop.tensors import LazyTensor, WeightFileError

Tensors = Mapping[str, LazyTensor]


def draft_of(tensors: Tensors, *, where: str = "the file") -> dict[str, Any]:
    """Reads the sizes of a model off its tensors.

    Returns:
        The part of a spec that shapes say: no heads, activation, epsilon or preprocessing.

    Raises:
        WeightFileError: they are of no tower known.
    """
    reader = Reader(tensors, where)
    draft: dict[str, Any]
    if "visual.trunk.norm_pre.weight" in tensors:
        draft = _perception(reader)
    elif "visual.trunk.attn_pool.latent" in tensors:
        draft = _trunk(reader)
    elif "visual.layer1.0.conv1.weight" in tensors:
        draft = _resnet(reader)
    elif "visual.class_embedding" in tensors:
        draft = _vit(reader)
    else:
        raise reader.unknown("image", "visual.", "a ViT, a modified ResNet or timm's ViTs")
    if "text.transformer.embeddings.word_embeddings.weight" in tensors:
        draft |= _xlm_roberta(reader)
    elif "text.token_embedding.weight" in tensors:
        draft |= _text(reader, causal=draft["image"].get("pooling", "cls") == "cls")
    else:
        raise reader.unknown("text", "text.", "a CLIP text transformer or XLM-RoBERTa")
    return {**draft, "logit_bias": -10.0 if "logit_bias" in tensors else None}


class Reader:
    """Shapes by name; what is missing or has other axes is a WeightFileError."""

    def __init__(self, tensors: Tensors, where: str) -> None:
        self.tensors, self.where = tensors, where

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor of so many axes."""
        if name not in self.tensors:
            raise WeightFileError(
                f"{self.where} lacks {name}, without which its model is unknown; "
                "take a whole state dict"
            )
        shape = self.tensors[name].shape
        if len(shape) != rank or 0 in shape:
            raise WeightFileError(
                f"{self.where}: {name} has shape {shape}, it should have {rank} dimensions"
            )
        return shape

    def count(self, pattern: str) -> int:
        """Blocks of a stack, whose numbers stand in the names."""
        numbers = {m[1] for m in map(re.compile(pattern).match, self.tensors) if m}
        if not numbers:
            raise WeightFileError(f"{self.where} has no tensor like {pattern}: it has no blocks")
        missing = [i for i in range(len(numbers)) if str(i) not in numbers]
        if missing:
            raise WeightFileError(
                f"{self.where}: of {len(numbers)} blocks {pattern} number {missing[0]} is missing"
            )
        return len(numbers)

    def grid(self, name: str, rows: int) -> int:
        """The side of a square of so many patches."""
        side = math.isqrt(rows)
        if side == 0 or side * side != rows:
            raise WeightFileError(
                f"{self.where}: {name} has {rows} patches; only square images are supported"
            )
        return side

    def patch(self, name: str) -> tuple[int, int]:
        """Width and patch size of a convolution over square patches, OIHW."""
        width, _, rows, columns = self.shape(name, 4)
        if rows != columns:
            raise WeightFileError(
                f"{self.where}: {name} has patches of {rows} x {columns} pixels; only square ones "
                "are supported"
            )
        return width, rows

    def blocks(self, stack: str, fc: str) -> dict[str, int]:
        """Depth and MLP of a stack of blocks, `stack.NUMBER.fc.weight`."""
        return {
            "depth": self.count(stack.replace(".", r"\.") + r"\.(\d+)\."),
            "mlp_dim": self.shape(f"{stack}.0.{fc}.weight", 2)[0],
        }

    def vit(self, patches: str, positions: int, table: str) -> tuple[dict[str, Any], int]:
        """A vision transformer's first sizes, and the pixels of its square images."""
        width, patch_size = self.patch(patches)
        tower = {"name": "vit", "patch_size": patch_size, "width": width}
        return tower, patch_size * self.grid(table, positions)

    def unknown(self, tower: str, prefix: str, known: str) -> WeightFileError:
        """The error of a tower that is none of those known."""
        names = [name for name in self.tensors if name.startswith(prefix)] or list(self.tensors)
        return WeightFileError(
            f"{self.where}: the {tower} tower is none of {known}, as OpenCLIP names them; its "
            f"first tensors are {', '.join(sorted(names)[:4]) or 'none'}"
        )


def _vit(reader: Reader) -> dict[str, Any]:
    table = "visual.positional_embedding"
    image, size = reader.vit("visual.conv1.weight", reader.shape(table, 2)[0] - 1, table)
    # OpenCLIP's models without the first normalisation are CLIPA's: they pool the patches' mean.
    pre_norm = "visual.ln_pre.weight" in reader.tensors
    image |= reader.blocks("visual.transformer.resblocks", "mlp.c_fc")
    image |= {"pooling": "cls" if pre_norm else "patch_mean", "pre_norm": pre_norm}
    return {"embed_dim": reader.shape("visual.proj", 2)[1], "image_size": size, "image": image}


def _trunk(reader: Reader) -> dict[str, Any]:
    table, patches = "visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight"
    image, size = reader.vit(patches, reader.shape(table, 3)[1], table)
    image |= reader.blocks("visual.trunk.blocks", "mlp.fc1")
    image |= {"pooling": "map", "pre_norm": False, "patch_bias": True}
    sizes = {"embed_dim": image["width"], "image_size": size, "image": image}
    return {**sizes, "image_projection": "none"}


def _perception(reader: Reader) -> dict[str, Any]:
    table, patches = "visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight"
    class_token = "visual.trunk.cls_token" in reader.tensors
    positions = reader.shape(table, 3)[1] - class_token
    image, size = reader.vit(patches, positions, table)
    image |= {"name": "perception_encoder", "class_token": class_token}
    image["rotary_side"] = size // image["patch_size"]  # where no row of the zoo says another
    image |= reader.blocks("visual.trunk.blocks", "mlp.fc1")
    return {
        "embed_dim": reader.shape("visual.trunk.head.weight", 2)[0],
        "image_size": size,
        "image": image,
        "image_projection": "linear_bias",
    }


def _resnet(reader: Reader) -> dict[str, Any]:
    table, width = "visual.attnpool.positional_embedding", reader.shape("visual.bn3.weight", 1)[0]
    embed_dim = reader.shape("visual.attnpool.c_proj.weight", 2)[0]
    image = {
        "name": "modified_resnet",
        "layers": [reader.count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)],
        "width": width,
        "output_dim": embed_dim,
    }
    return {
        "embed_dim": embed_dim,
        "image_size": 32 * reader.grid(table, reader.shape(table, 2)[0] - 1),
        "image": image,
        "image_projection": "none",
    }


def _text(reader: Reader, *, causal: bool) -> dict[str, Any]:
    vocab_size, width = reader.shape("text.token_embedding.weight", 2)
    projection = "none"
    if "text.text_projection" in reader.tensors:
        projection = "linear"
    elif "text.text_projection.weight" in reader.tensors:
        projection = "linear_bias"
    text = {
        "name": "causal_transformer" if causal else "bidirectional_transformer",
        "vocab_size": vocab_size,
        "context_length": reader.shape("text.positional_embedding", 2)[0],
        "width": width,
        **reader.blocks("text.transformer.resblocks", "mlp.c_fc"),
        "pooling": "eot" if causal else "last",
    }
    return {"text": text, "text_projection": projection}


def _xlm_roberta(reader: Reader) -> dict[str, Any]:
    embeddings = "text.transformer.embeddings"
    vocab_size, width = reader.shape(f"{embeddings}.word_embeddings.weight", 2)
    projection = "none"
    if "text.proj.2.weight" in reader.tensors:
        projection = "mlp"
    elif "text.proj.weight" in reader.tensors:
        projection = "linear"
    text = {
        "name": "bert",
        "vocab_size": vocab_size,
        "width": width,
        **reader.blocks("text.transformer.encoder.layer", "intermediate.dense"),
        "num_positions": reader.shape(f"{embeddings}.position_embeddings.weight", 2)[0],
        "num_segments": reader.shape(f"{embeddings}.token_type_embeddings.weight", 2)[0],
        "pooling": "mean",
    }
    return {"text": text, "text_projection": projection}


_DEFAULTS = {
    "class_token": True,
    "pre_norm": True,
    "patch_bias": False,
    "num_positions": 512,
    "num_segments": 2,
}
_IMAGE = (
    *("name", "pooling", "pre_norm", "patch_bias", "patch_size", "width", "depth", "mlp_dim"),
    *("layers", "output_dim", "class_token"),
)
_TEXT = ("name", "pooling", "vocab_size", "width", "depth", "mlp_dim")
_BERT = ("num_positions", "num_segments")


def sizes_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Lists what shapes say of a spec or a draft but positions and the bias, by dotted name."""
    text_fields = _TEXT + (_BERT if spec["text"]["name"] == "bert" else ())
    sizes = {
        **{f"image.{k}": spec["image"].get(k, _DEFAULTS.get(k)) for k in _IMAGE},
        **{f"text.{k}": spec["text"].get(k, _DEFAULTS.get(k)) for k in text_fields},
        "embed_dim": spec["embed_dim"],
    }
    if spec["image"]["name"] == "modified_resnet":  # fields that it does not have
        sizes = {k: v for k, v in sizes.items() if k not in ("image.pre_norm", "image.patch_bias")}
    for tower in ("image", "text"):
        sizes[f"{tower}_projection"] = spec.get(f"{tower}_projection", "linear")
    return sizes


def positions_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the sizes of a spec's or a draft's tables of positions."""
    patch = spec["image"].get("patch_size", 32)
    positions = {"image grid": spec["image_size"] // patch}
    if spec["text"]["name"] != "bert":  # whose table is larger than any context
        positions["text.context_length"] = spec["text"]["context_length"]
    return positions
