"""Every leaf of a model under big_vision's names, as SigLIP, CLIPA and OpenVision have them.

    siglip   img/{embedding, pos_embedding, Transformer/..., MAPHead_0}, txt/{Encoder_0/..., head}
    naflex   the same; patches are rows of numbers, positions a grid
    clipa    img/{embedding, cls, Transformer/..., encoder_norm, head},  txt/{Transformer/..., head}

Kernels are [in, out] there as here, and attention's are already split into heads.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipjax.interop.leaves import (
    IDENTITY,
    SCALAR,
    Leaf,
    Transform,
    drop_axes,
    joined_leaf,
    leaf,
    reshape,
)
from clipjax.interop.tensors import LazyTensor

# Where the parameters stand in a file: beside an optimizer of optax, of the old flax, or alone.
_ROOTS = ("params/", "opt/target/")
_STACK = re.compile(r"^(.*/encoderblock)/(.*)$")
_TOWERS = re.compile(r"^(img/|txt/|[tb]$)")
# Some older text towers added their positions twice, from two tables.
_SECOND_POSITIONS = "txt/Encoder_0/pos_embedding"


def plain_names(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Brings the names of a file to one form: no root, one subtree a block.

    Args:
        tensors: of the file; its blocks may be stacked (`encoderblock/...`, from a scan).

    Returns:
        The parameters, and the names of all that is none: optimizer, step, clock.
    """
    root = next((r for r in _ROOTS if any(name.startswith(r) for name in tensors)), "")
    parameters, ignored = {}, []
    for name, tensor in tensors.items():
        short = name.removeprefix(root)
        if not name.startswith(root) or not _TOWERS.match(short):
            ignored.append(name)
            continue
        match = _STACK.match(short)
        if match is None:
            parameters[short] = tensor
            continue
        for i in range(tensor.shape[0]):
            parameters[f"{match[1]}_{i}/{match[2]}"] = tensor.row(i)
    second, first = parameters.pop(_SECOND_POSITIONS, None), parameters.get("txt/pos_embedding")
    if second is not None and first is not None:
        one, two = first.astype(np.float32), second.astype(np.float32)
        parameters["txt/pos_embedding"] = dataclasses.replace(
            one, read=lambda: one.read() + two.read(), read_rows=None
        )
    return parameters, tuple(ignored)


def has_clipa_names(spec: Mapping[str, Any]) -> bool:
    """Whether a model's tree is that of CLIPA and OpenVision."""
    return spec["image"].get("pooling") == "patch_mean"


def leaves(spec: Mapping[str, Any], *, flat_attention: bool = False) -> tuple[Leaf, ...]:
    """Lists every leaf of a model with the tensors of big_vision's tree that make it.

    Raises:
        ValueError: big_vision's trees have no such towers.
    """
    image, text = spec["image"], spec["text"]
    is_vit = image["name"] in ("vit", "naflex_vit")
    if text["name"] != "bidirectional_transformer" or not is_vit:
        raise ValueError(
            f"big_vision's files hold a ViT and a bidirectional text transformer, not "
            f"{image['name']!r} and {text['name']!r}"
        )
    image_leaves = _clipa_image if has_clipa_names(spec) else _siglip_image
    found = [
        leaf("logit_scale", "t", SCALAR),
        *image_leaves(spec, flat_attention),
        *_text(spec, flat_attention),
        *_projection("image", "img/head", spec),
        *_projection("text", "txt/head", spec),
    ]
    if spec["logit_bias"] is not None:
        found.append(leaf("logit_bias", "b", SCALAR))
    return tuple(found)


def _siglip_image(spec: Mapping[str, Any], flat: bool) -> list[Leaf]:
    image, head = spec["image"], "image_encoder/map_head"
    pool, query = "img/MAPHead_0", "img/MAPHead_0/MultiHeadDotProductAttention_0"
    split, positions, patches = _split(image, flat), drop_axes(0), IDENTITY
    if image["name"] == "naflex_vit":
        size, side, width = image["patch_size"], image["position_side"], image["width"]
        positions = reshape((side, side, width), (side * side, width))
        patches = reshape((size * size * 3, width), (size, size, 3, width))
    return [
        leaf("image_encoder/patch_kernel", "img/embedding/kernel", patches),
        leaf("image_encoder/patch_bias", "img/embedding/bias"),
        leaf("image_encoder/position_embedding", "img/pos_embedding", positions),
        *_blocks("image_encoder", "img/Transformer", image, flat),
        *_norm("image_encoder/ln_post", "img/Transformer/encoder_norm"),
        leaf(f"{head}/probe", f"{pool}/probe", drop_axes(0)),
        leaf(f"{head}/attention/q_kernel", f"{query}/query/kernel", split.kernel),
        leaf(f"{head}/attention/q_bias", f"{query}/query/bias", split.bias),
        *_joined(f"{head}/attention", "kv", query, ("key", "value"), split),
        leaf(f"{head}/attention/out_kernel", f"{query}/out/kernel", split.out),
        leaf(f"{head}/attention/out_bias", f"{query}/out/bias"),
        *_norm(f"{head}/norm", f"{pool}/LayerNorm_0"),
        *_mlp(f"{head}/mlp", f"{pool}/MlpBlock_0"),
    ]


def _clipa_image(spec: Mapping[str, Any], flat: bool) -> list[Leaf]:
    found = [
        leaf("image_encoder/patch_kernel", "img/embedding/kernel"),
        leaf("image_encoder/class_embedding", "img/cls", drop_axes(0, 1)),
        *_blocks("image_encoder", "img/Transformer", spec["image"], flat),
        *_norm("image_encoder/ln_post", "img/encoder_norm"),
    ]
    if spec["image"].get("patch_bias", False):
        found.append(leaf("image_encoder/patch_bias", "img/embedding/bias"))
    if spec["image"].get("positions", "learned") == "learned":
        position = leaf("image_encoder/position_embedding", "img/pos_embedding", drop_axes(0))
        found.append(position)
    return found


def _text(spec: Mapping[str, Any], flat: bool) -> list[Leaf]:
    stack, norm = "txt/Encoder_0", "txt/Encoder_0/encoder_norm"
    if has_clipa_names(spec):
        stack, norm = "txt/Transformer", "txt/encoder_norm"
    return [
        leaf("text_encoder/token_embedding", "txt/Embed_0/embedding"),
        leaf("text_encoder/position_embedding", "txt/pos_embedding", drop_axes(0)),
        *_blocks("text_encoder", stack, spec["text"], flat),
        *_norm("text_encoder/ln_final", norm),
    ]


def _projection(tower: str, head: str, spec: Mapping[str, Any]) -> list[Leaf]:
    kind, ours = spec.get(f"{tower}_projection", "linear"), f"{tower}_projection"
    parts = {"none": (), "linear_bias": ("kernel", "bias")}.get(kind, ("kernel",))
    return _same(ours, head, *parts)


@dataclasses.dataclass(frozen=True)
class _Split:
    """Transforms of attention's kernels."""

    kernel: Transform = IDENTITY
    bias: Transform = IDENTITY
    out: Transform = IDENTITY


def _split(tower: Mapping[str, Any], flat: bool) -> _Split:
    """From matrices where `flat`; else they are split into heads there as here."""
    if not flat:
        return _Split()
    width, heads = tower["width"], (tower["num_heads"], tower["width"] // tower["num_heads"])
    return _Split(
        reshape((width, width), (width, *heads)),
        reshape((width,), heads),
        reshape((width, width), (*heads, width)),
    )


def _blocks(ours: str, theirs: str, tower: Mapping[str, Any], flat: bool) -> list[Leaf]:
    found, split = [], _split(tower, flat)
    for i in range(tower["depth"]):
        our, their = f"{ours}/transformer/block_{i}", f"{theirs}/encoderblock_{i}"
        attention = f"{their}/MultiHeadDotProductAttention_0"
        found += [
            *_norm(f"{our}/ln_1", f"{their}/LayerNorm_0"),
            *_joined(f"{our}/attention", "qkv", attention, ("query", "key", "value"), split),
            leaf(f"{our}/attention/out_kernel", f"{attention}/out/kernel", split.out),
            leaf(f"{our}/attention/out_bias", f"{attention}/out/bias"),
            *_norm(f"{our}/ln_2", f"{their}/LayerNorm_1"),
            *_mlp(f"{our}/mlp", f"{their}/MlpBlock_0"),
        ]
    return found


def _joined(
    ours: str, name: str, theirs: str, parts: tuple[str, ...], split: _Split
) -> tuple[Leaf, Leaf]:
    kernels = [f"{theirs}/{part}/kernel" for part in parts]
    biases = [f"{theirs}/{part}/bias" for part in parts]
    return (
        joined_leaf(f"{ours}/{name}_kernel", kernels, 1, split.kernel),
        joined_leaf(f"{ours}/{name}_bias", biases, 0, split.bias),
    )


def _norm(ours: str, theirs: str) -> list[Leaf]:
    return _same(ours, theirs, "scale", "bias")


def _mlp(ours: str, theirs: str) -> list[Leaf]:
    first = _same(f"{ours}/fc", f"{theirs}/Dense_0", "kernel", "bias")
    return first + _same(f"{ours}/proj", f"{theirs}/Dense_1", "kernel", "bias")


def _same(ours: str, theirs: str, *parts: str) -> list[Leaf]:
    """Leaves that are theirs as they are."""
    return [leaf(f"{ours}/{part}", f"{theirs}/{part}") for part in parts]
