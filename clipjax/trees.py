"""Trees of arrays by name: every leaf has one, its path joined with '/'."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def path_name(path: tuple[Any, ...]) -> str:
    """Joins a key path of `jax.tree_util` to a name: `params/text_encoder/ln_final/scale`."""
    return "/".join(_key_name(key) for key in path)


def flatten_with_names(tree: Any) -> list[tuple[str, Any]]:
    """Lists (name, leaf) in the tree's own order."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_names(function: Any, tree: Any, *rest: Any) -> Any:
    """Maps `function(name, leaf, *others)` over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, *others: function(path_name(path), leaf, *others), tree, *rest
    )


def unflatten_names(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the nested dict of a mapping from names to leaves.

    Raises:
        ValueError: a name is both a leaf and a folder of leaves.
    """
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name!r}: {folder!r} is a leaf already; rename one of the two")
        if last in node:
            raise ValueError(
                f"{name!r} is given twice or is a folder already; rename one of the two"
            )
        node[last] = leaf
    return tree


def count_parameters(tree: Any) -> int:
    """Counts the elements of all leaves; works on arrays and on shapes alike."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Any) -> int:
    """Counts the bytes of all leaves; works on arrays and on shapes alike."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )
