"""Which parameters stay as they are: whole leaves, and blocks of a stack."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from clipjax.config_fields import LoraSettings
from clipjax.losses.objectives import is_of_objective
from clipjax.models.layers_layout import block_names
from clipjax.models.lora import is_of_lora, kernel_of
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


Masks = dict[str, np.ndarray]
"""By the name of a parameter as it is kept, bool: `[depth]` of a stack, `[]` of any other."""


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
    return fixed_by(masks_of(patterns, shapes, strict=strict), shapes)


def masks_of(
    patterns: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
    *,
    strict: bool = True,
    where: str = "freeze",
) -> Masks:
    """Finds what regular expressions name, as `fixed_of`."""
    blocks = {name: block_names(name, shape) for name, shape in shapes.items()}
    names = [*blocks, *(part for parts in blocks.values() for part in parts)]
    found = matching_leaves(patterns, names, where=where, kind="parameter", strict=strict)
    return {
        name: np.array([part in found or name in found for part in parts])
        if parts
        else np.array(name in found)
        for name, parts in blocks.items()
    }


def masks_of_lora(lora: LoraSettings, shapes: Mapping[str, Sequence[int]]) -> Masks:
    """What stays fixed where differences of low rank are trained: all but these and what is named.

    Of a stack of which some blocks are targets, the factors of the others stay as they are drawn:
    `b` is zero, and so is the difference.

    Args:
        lora: whose rank is not 0.
        shapes: of the parameters as they are kept, factors too.
    """
    own = {name: shape for name, shape in shapes.items() if not is_of_lora(f"params/{name}")}
    targets = masks_of(lora.targets, own, where="lora.targets")
    trained = masks_of(lora.trained, own, where="lora.trained")
    fixed: Masks = {}
    for name in shapes:
        if name not in own:
            fixed[name] = ~targets[kernel_of(name)]
        elif is_of_objective(f"params/{name}"):
            fixed[name] = np.array(False)
        else:
            fixed[name] = ~trained[name]
    return fixed


def fixed_by(masks: Masks, shapes: Mapping[str, Sequence[int]]) -> Fixed:
    """What masks fix."""
    whole: set[str] = set()
    rows: dict[str, np.ndarray] = {}
    for name, hit in masks.items():
        parts = block_names(name, shapes[name])
        if hit.all():
            whole |= {name, *parts}
        elif hit.any():
            rows[name] = hit
            rows |= {
                part: np.array(True) for part, is_hit in zip(parts, hit, strict=True) if is_hit
            }
    return Fixed(frozenset(whole), rows)
