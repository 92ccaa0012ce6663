"""Which parameters weight decay touches: the published choices, by name.

The choice is made by the parameter's name, not by its number of dimensions: a scanned
layer normalisation has two, a fused qkv bias has three.
"""

import re
from collections.abc import Callable, Sequence

from clipjax.ranges import FieldError
from clipjax.trees import matching_leaves

_GAIN_OR_BIAS = re.compile(r"(^|/)(scale|logit_scale|logit_bias|\w*bias)$")
_POSITION_OR_CLASS = re.compile(r"(^|/)(position_embedding|class_embedding)$")
_CLASS = re.compile(r"(^|/)class_embedding$")
_KERNEL = re.compile(r"kernel$")

NamePredicate = Callable[[str], bool]


def openai_mask(name: str) -> bool:
    """All weights that are not gains or biases (arXiv:2103.00020, section 2.5)."""
    return _GAIN_OR_BIAS.search(name) is None


def openclip_mask(name: str) -> bool:
    """OpenCLIP today: neither gains, biases, nor position and class embeddings."""
    return openai_mask(name) and _POSITION_OR_CLASS.search(name) is None


def openclip_legacy_mask(name: str) -> bool:
    """OpenCLIP's published LAION and DataComp runs: position embeddings are decayed."""
    return openai_mask(name) and _CLASS.search(name) is None


def kernels_mask(name: str) -> bool:
    """big_vision: only kernels."""
    return _KERNEL.search(name) is not None


def all_mask(name: str) -> bool:
    """Every parameter."""
    del name
    return True


DECAY_MASKS: dict[str, NamePredicate] = {
    "all": all_mask,
    "kernels": kernels_mask,
    "openai": openai_mask,
    "openclip": openclip_mask,
    "openclip_legacy": openclip_legacy_mask,
}


def decay_mask(name: str) -> NamePredicate:
    """Looks a mask up.

    Raises:
        ValueError: an unknown name.
    """
    if name not in DECAY_MASKS:
        raise FieldError(f"mask = {name!r} is unknown; allowed are {', '.join(DECAY_MASKS)}")
    return DECAY_MASKS[name]


def matcher(patterns: Sequence[str], names: Sequence[str], *, path: str) -> NamePredicate:
    """Makes the predicate whether one of the regular expressions is found in a name.

    Raises:
        ValueError: a pattern that is no regular expression, or that matches nothing.
    """
    return matching_leaves(patterns, names, where=path, kind="parameter").__contains__
