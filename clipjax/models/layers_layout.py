"""Two layouts of a transformer's parameters: stacked (scanned) and one subtree a block (unrolled).

Stacked `.../blocks/attention/qkv_kernel` [depth, ...] equals `.../block_0/attention/qkv_kernel`,
`.../block_1/...`, and so on. Training stacks; export wants the blocks apart.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from clipjax.trees import flatten_with_names, unflatten_names

_BLOCK = re.compile(r"^(.*/)block_(\d+)/(.*)$")
_STACK = re.compile(r"^(.*/)blocks/(.*)$")


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns every stacked transformer of a tree to one subtree a block."""
    leaves = {}
    for name, leaf in flatten_with_names(params):
        match = _STACK.match(name)
        if match is None:
            leaves[name] = leaf
            continue
        prefix, rest = match.groups()
        for i in range(leaf.shape[0]):
            leaves[f"{prefix}block_{i}/{rest}"] = leaf[i]
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
