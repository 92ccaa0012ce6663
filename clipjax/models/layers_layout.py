"""Two layouts of a transformer's parameters: stacked (scanned) and one subtree a block (unrolled).

Stacked `.../blocks/attention/qkv_kernel` [depth, ...] equals `.../block_0/attention/qkv_kernel`,
`.../block_1/...`, and so on. What is kept is stacked; export wants the blocks apart, and so does a
step on a CPU that is not to scan.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_STACK = re.compile(r"^(.*/)blocks/(.*)$")


def block_names(name: str, shape: Sequence[int]) -> list[str]:
    """Names of the parts of a stacked leaf, its blocks' own; none of any other leaf.

    Args:
        name: of the leaf.
        shape: its whole shape, `[depth, ...]` of a stack.
    """
    match = _STACK.match(name)
    return [f"{match[1]}block_{i}/{match[2]}" for i in range(shape[0])] if match else []


def unstacked_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of leaves by name, with every stack's blocks apart."""
    result: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        names = block_names(name, shape)
        result |= dict.fromkeys(names, shape[1:]) if names else {name: shape}
    return result


def unstack_layers(params: Any) -> Any:
    """Turns every stacked transformer of a tree of dicts to one subtree a block."""
    if not isinstance(params, Mapping):
        return params
    return {key: unstack_layers(value) for key, value in _apart(params).items()}


def stack_layers(params: Any) -> Any:
    """Turns every unrolled transformer of a tree of dicts to stacked parameters."""
    if not isinstance(params, Mapping):
        return params
    return {key: stack_layers(value) for key, value in _stacked(params, _stack_arrays).items()}


def laid_out_like(tree: Any, like: Any, stack: Callable[..., Any] | None = None) -> Any:
    """Stacks the blocks of a tree, or takes them apart, wherever another tree has them so.

    Args:
        tree: any tree, such as a train state. Of its dicts those are looked at that have the keys
            of `like`: the parameters, and what an optimizer keeps of them.
        like: parameters in the layout that is wanted; their leaves mean nothing.
        stack: makes one leaf of those of the blocks; by default, arrays are stacked.
    """

    def convert(node: Any, like: Any) -> Any:
        if not isinstance(node, Mapping) or not isinstance(like, Mapping):
            return node
        if "blocks" in like:
            node = _stacked(node, stack or _stack_arrays)
        else:  # an optimizer keeps nothing of blocks that are frozen
            node = _apart(node, sum(bool(re.fullmatch(r"block_\d+", name)) for name in like))
        return {key: convert(value, like.get(key)) for key, value in node.items()}

    def convert_params(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        if node.keys() == like.keys():
            return convert(node, like)
        return {key: laid_out_like(value, like, stack) for key, value in node.items()}

    return jax.tree.map(convert_params, tree, is_leaf=lambda node: isinstance(node, Mapping))


def _stacked(node: Mapping[str, Any], stack: Callable[..., Any]) -> Mapping[str, Any]:
    """One dict with the blocks in it stacked; itself where it has none."""
    names = [name for name in node if re.fullmatch(r"block_\d+", name)]
    if not names:
        return node
    names.sort(key=lambda name: int(name.removeprefix("block_")))
    blocks = jax.tree.map(stack, *(node[name] for name in names))
    return {**{key: node[key] for key in node if key not in names}, "blocks": blocks}


def _apart(node: Mapping[str, Any], depth: int | None = None) -> Mapping[str, Any]:
    """One dict with a stack in it taken apart; itself where it has none."""
    if "blocks" not in node:
        return node
    if depth is None:
        depth = jax.tree.leaves(node["blocks"])[0].shape[0]
    blocks = {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], node["blocks"]) for i in range(depth)
    }
    return {**{key: node[key] for key in node if key != "blocks"}, **blocks}


def _stack_arrays(*blocks: Any) -> Any:
    return (np if isinstance(blocks[0], np.ndarray) else jnp).stack(blocks)
