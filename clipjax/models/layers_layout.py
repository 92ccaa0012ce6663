"""Two layouts of a transformer's parameters: stacked (scanned) and one subtree a block (unrolled).

Stacked `.../blocks/attention/qkv_kernel` [depth, ...] equals `.../block_0/attention/qkv_kernel`,
`.../block_1/...`, and so on. Training stacks; export wants the blocks apart.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

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
