"""Trees of arrays by name: every leaf has one, its path joined with '/'."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from clipjax.ranges import FieldError

T = TypeVar("T")


def path_name(path: tuple[Any, ...]) -> str:
    """Joins a key path of `jax.tree_util` to a name: `params/text_encoder/ln_final/scale`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


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


def rename_leaves(
    leaves: Mapping[str, T], pairs: Iterable[tuple[str, str]], *, where: str, strict: bool = True
) -> dict[str, T]:
    """Gives leaves other names.

    Raises:
        ValueError: a pair is no regular expression with its replacement, changes no name, or gives
            two leaves one name.
    """
    renamed = dict(leaves)
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[1], str):
            raise FieldError(f"{where}: {pair!r} is no pair (regular expression, replacement)")
        pattern, before, renamed = _compiled(pair[0], where), renamed, {}
        for name, value in before.items():
            try:
                new_name = pattern.sub(pair[1], name)
            except (re.error, IndexError) as error:  # a group that the pattern does not have
                raise FieldError(
                    f"{where}: {pair[1]!r} cannot replace {pair[0]!r}: {error}"
                ) from error
            if new_name in renamed:
                raise FieldError(
                    f"{where}: {pair[0]!r} gives two leaves the name {new_name!r}; make it match "
                    "one of them"
                )
            renamed[new_name] = value
        if strict and renamed.keys() == before.keys():
            raise FieldError(
                f"{where}: {pair[0]!r} changes no name of the checkpoint; "
                f"names look like {next(iter(before), 'nothing')!r}"
            )
    return renamed


def matching_leaves(
    patterns: Iterable[str],
    names: Iterable[str],
    *,
    where: str,
    kind: str = "leaf",
    strict: bool = True,
) -> set[str]:
    """The names that one of the regular expressions is found in.

    Raises:
        ValueError: a pattern is no regular expression, or matches no name.
    """
    found: set[str] = set()
    names = list(names)
    for pattern in patterns:
        search = _compiled(pattern, where).search
        matches = {name for name in names if search(name)}
        if strict and not matches:
            raise FieldError(
                f"{where}: {pattern!r} matches no {kind}; names look like "
                f"{next(iter(names), 'nothing')!r}"
            )
        found |= matches
    return found


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A regular expression that a person wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise FieldError(f"{where}: {pattern!r} is no regular expression: {error}") from error
