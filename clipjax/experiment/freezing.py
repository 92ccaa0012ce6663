"""Which parameters stay as they are: whole leaves, and blocks of a stack."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from clipjax.models.layers_layout import block_names
from clipjax.trees import matching_leaves


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Parameters that take no gradient, by name, in either layout: stacked, and blocks apart.

    Attributes:
        names: those that are fixed as a whole; no optimizer keeps anything of them.
        rows: bool `[depth]` of stacks of which some blocks are fixed, and True of those blocks. A
            stack is one leaf of the optimizer's state, which has moments of them, too: zeros.
    """

    names: frozenset[str]
    rows: Mapping[str, np.ndarray]

    def __call__(self, name: str) -> bool:
        """Whether a parameter is fixed as a whole."""
        return name in self.names


def fixed_of(
    patterns: Sequence[str], shapes: Mapping[str, Sequence[int]], *, strict: bool = True
) -> Fixed:
    """Finds what regular expressions fix: a pattern names leaves, or blocks as if they stood apart.

    `/block_3/` is one block of every stack, `/blocks/` all of them, however a step has them.

    Args:
        patterns: one that is found in a name fixes it.
        shapes: of the parameters as they are kept, by name.
        strict: whether each has to match something.

    Raises:
        ValueError: a pattern that is no regular expression, or matches no parameter.
    """
    blocks = {name: block_names(name, shape) for name, shape in shapes.items()}
    names = [*blocks, *(part for parts in blocks.values() for part in parts)]
    found = matching_leaves(patterns, names, where="freeze", kind="parameter", strict=strict)
    whole: set[str] = set()
    rows: dict[str, np.ndarray] = {}
    for name, parts in blocks.items():
        hit = np.array([part in found for part in parts])
        if name in found or (parts and hit.all()):
            whole |= {name, *parts}
        elif hit.any():
            rows[name] = hit
            rows |= {part: np.array(True) for part in parts if part in found}
    return Fixed(frozenset(whole), rows)
