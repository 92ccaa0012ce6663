"""Factors of the learning rate, by name, and by depth: a stack has one a layer."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clipjax.optim.masks import matcher
from clipjax.ranges import FieldError
from clipjax.trees import flatten_with_names

# (name of a parameter, number of its dimensions) -> factor, `[layers, 1, ...]` of a stack.
Factor = Callable[[str, int], Any]
_BLOCK = re.compile(r"^([^/]+)/(?:.*/)?(?:blocks|block_(\d+))/")
# What a tower does in front of its blocks.
_BEFORE = re.compile(r"^[^/]+/(patch_\w+|\w+_embedding|ln_pre/\w+|ln_embedding/\w+)$")


def rate_factors(
    params: Any,
    lr_scale: Sequence[tuple[str, float]] = (),
    layer_decay: Sequence[tuple[str, float]] = (),
) -> Factor:
    """Makes the function from a parameter to its factor, that of the path times that of the depth.

    Args:
        params: the parameters or their shapes.
        lr_scale: (regular expression, factor); the first that matches a name counts, else 1.
        layer_decay: (regular expression, decay) likewise. Of D blocks, block i from 0 has
            `decay^(D - i)`, what stands in front of the blocks `decay^(D + 1)`, what follows 1
            (arXiv:2106.08254).

    Raises:
        ValueError: a pattern that matches nothing; or one of `layer_decay` that matches no block.
    """
    leaves = flatten_with_names(params)
    names = [name for name, _ in leaves]
    by_path = _by_pattern(lr_scale, names, path="lr_scale")
    by_depth = _by_pattern(layer_decay, names, path="layer_decay")
    for pattern, _ in layer_decay:
        if not any(re.search(pattern, name) and _BLOCK.match(name) for name in names):
            raise FieldError(
                f"layer_decay: {pattern!r} matches no block of a tower's transformer; layers that "
                "are no such blocks take factors by name, from lr_scale"
            )
    depths = _depths(leaves)

    def factor(name: str, ndim: int) -> Any:
        decay, depth = by_depth(name), depths.get(name.partition("/")[0])
        scale = by_path(name)
        if decay == 1.0 or depth is None:
            return scale
        block = _BLOCK.match(name)
        if block is None:
            return scale * decay ** (depth + 1) if _BEFORE.match(name) else scale
        if block[2] is not None:
            return scale * decay ** (depth - int(block[2]))
        powers = decay ** (depth - np.arange(depth, dtype=np.float64))
        return (scale * powers).astype(np.float32).reshape(depth, *[1] * (ndim - 1))

    return factor


def _by_pattern(
    pairs: Sequence[tuple[str, float]], names: Sequence[str], *, path: str
) -> Callable[[str], float]:
    matchers = [(matcher([pattern], names, path=path), float(value)) for pattern, value in pairs]
    return lambda name: next((value for matches, value in matchers if matches(name)), 1.0)


def _depths(leaves: Sequence[tuple[str, Any]]) -> dict[str, int]:
    """The blocks of each tower that has some, stacked or apart."""
    depths: dict[str, int] = {}
    for name, leaf in leaves:
        match = _BLOCK.match(name)
        if match is not None:
            depth = leaf.shape[0] if match[2] is None else int(match[2]) + 1
            depths[match[1]] = max(depths.get(match[1], 0), depth)
    return depths
