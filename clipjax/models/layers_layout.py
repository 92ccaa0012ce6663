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

from clipjax.trees import flatten_with_names, unflatten_names

_BLOCK = re.compile(r"^(.*/)block_(\d+)/(.*)$")
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


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns every stacked transformer of a tree to one subtree a block."""
    leaves: dict[str, Any] = {}
    for name, leaf in flatten_with_names(params):
        names = block_names(name, leaf.shape)
        leaves |= {apart: leaf[i] for i, apart in enumerate(names)} if names else {name: leaf}
    return unflatten_names(leaves)


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns every unrolled transformer of a tree to stacked parameters."""
    leaves: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for name, leaf in flatten_with_names(params):
        match = _BLOCK.match(name)
        if match is None:
            leaves[name] = leaf
            continue
        prefix, index, rest = match.groups()
        stacks.setdefault(f"{prefix}blocks/{rest}", {})[int(index)] = leaf
    for name, blocks in stacks.items():
        on_host = isinstance(blocks[0], np.ndarray)
        leaves[name] = (np if on_host else jnp).stack([blocks[i] for i in range(len(blocks))])
    return unflatten_names(leaves)


def _stack_arrays(*blocks: Any) -> Any:
    return jnp.stack(blocks)


def laid_out_like(tree: Any, like: Any, stack: Callable[..., Any] = _stack_arrays) -> Any:
    """Stacks the blocks of a tree, or takes them apart, wherever another tree has them so.

    Args:
        tree: any tree, such as a train state. Of its dicts those are looked at that have the keys
            of `like`: the parameters, and what an optimizer keeps of them.
        like: parameters in the layout that is wanted; their leaves mean nothing.
        stack: makes one leaf of those of the blocks; arrays are stacked.
    """

    def convert(node: Any, like: Any) -> Any:
        if not isinstance(node, Mapping) or not isinstance(like, Mapping):
            return node
        if "blocks" in like and "blocks" not in node:
            names = _block_keys(node)
            blocks = jax.tree.map(stack, *(node[name] for name in names))
            node = {**{k: v for k, v in node.items() if k not in names}, "blocks": blocks}
        elif "blocks" in node and "blocks" not in like:
            blocks = {
                name: jax.tree.map(lambda leaf, i=i: leaf[i], node["blocks"])
                for i, name in enumerate(_block_keys(like))
            }
            node = {**{k: v for k, v in node.items() if k != "blocks"}, **blocks}
        return {key: convert(value, like.get(key)) for key, value in node.items()}

    def convert_params(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        if node.keys() == like.keys():
            return convert(node, like)
        return {key: laid_out_like(value, like, stack) for key, value in node.items()}

    return jax.tree.map(convert_params, tree, is_leaf=lambda node: isinstance(node, Mapping))


def _block_keys(node: Mapping[str, Any]) -> list[str]:
    names = [name for name in node if re.fullmatch(r"block_\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix("block_")))
