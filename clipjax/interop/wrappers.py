"""What is put before the names of a model's tensors by those who wrap, compile or split it."""

import re
from collections.abc import Iterable, Mapping

from clipjax.interop.tensors import LazyTensor, WeightFileError

Tensors = dict[str, LazyTensor]

# torch.compile, DistributedDataParallel, Lightning's and others' attribute, and peft's two.
PREFIXES = ("_orig_mod.", "module.", "model.", "clipmodel.", "base_model.model.")
MAX_DEPTH = 16  # of wrappers, one in the other
# TinyCLIP keeps its towers and its scale in three modules, each of which may be in a DDP's.
_TINY_CLIP = re.compile(r"_(?:image_encoder|text_encoder|logit_scale)\.(?:module\.)?")
# Long-CLIP's text tower has a second table of positions; the first is its namesake.
_SECOND_TABLE = re.compile(r"(position(?:al)?_embedding)_res(\.weight)?$")
LONG_CLIP_KEPT = 20


def without_wrappers(tensors: Mapping[str, LazyTensor]) -> tuple[Tensors, list[str]]:
    """Takes off the prefixes that all names carry, one in the other, and TinyCLIP's three.

    Returns:
        The tensors, and what to say of it.
    """
    found, notes = dict(tensors), list[str]()
    while len(notes) < MAX_DEPTH and (prefix := common_prefix(found)):
        found = {name.removeprefix(prefix): x for name, x in found.items()}
        notes.append(f"{prefix!r} taken off all {len(found)} names")
    if found and all(_TINY_CLIP.match(name) for name in found):
        plain = {_TINY_CLIP.sub("", name, count=1): x for name, x in found.items()}
        if len(plain) != len(found):
            raise WeightFileError("two modules of TinyCLIP's hold tensors of one name")
        found = plain
        notes.append("TinyCLIP's _image_encoder, _text_encoder and _logit_scale taken off")
    return found, notes


def common_prefix(names: Iterable[str]) -> str | None:
    """The one of PREFIXES that all names carry; None if there is none."""
    names = list(names)
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) and name != prefix for name in names):
            return prefix
    return None


def without_prefix(tensors: Mapping[str, LazyTensor], prefix: str) -> tuple[Tensors, list[str]]:
    """Takes a prefix that a person names off the names that carry it; others stay as they are.

    Raises:
        ValueError: no name carries it, or what is left of one is the name of another.
    """
    count = sum(name.startswith(prefix) and name != prefix for name in tensors)
    if not count:
        raise ValueError(
            f"strip_prefix={prefix!r}: no name starts with it; names look like "
            f"{next(iter(tensors), 'nothing')!r}"
        )
    found: Tensors = {}
    for name, tensor in tensors.items():
        new_name = name if name == prefix else name.removeprefix(prefix)
        if new_name in found:
            raise ValueError(f"strip_prefix={prefix!r} gives two tensors the name {new_name!r}")
        found[new_name] = tensor
    return found, [f"{prefix!r} taken off {count} of {len(found)} names"]


def with_one_position_table(tensors: Mapping[str, LazyTensor]) -> tuple[Tensors, list[str]]:
    """Joins Long-CLIP's two tables: the first 20 rows of one, the rest of the other.

    The first table stays as CLIP has it, for the positions that CLIP has trained well; the other is
    trained. The published code adds both under masks, of which one is 0 where the other is 1.

    Raises:
        WeightFileError: there is no first table, or it has another shape.

    Reference: arXiv:2403.15378.
    """
    found, notes = dict(tensors), []
    for name in [name for name in tensors if _SECOND_TABLE.search(name)]:
        first, second = _SECOND_TABLE.sub(r"\1\2", name), tensors[name]
        if first not in tensors or tensors[first].shape != second.shape or len(second.shape) != 2:
            shape = tensors[first].shape if first in tensors else "missing"
            raise WeightFileError(
                f"{name} of shape {second.shape} is Long-CLIP's second table of positions; the "
                f"first, {first}, should have its shape and is {shape}"
            )
        found[first] = tensors[first].followed_by(second, LONG_CLIP_KEPT)
        del found[name]
        notes.append(
            f"Long-CLIP's two tables of positions made one: {LONG_CLIP_KEPT} rows of {first}, the "
            f"other {max(0, second.shape[0] - LONG_CLIP_KEPT)} of {name}"
        )
    return found, notes
