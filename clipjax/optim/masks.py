"""Which parameters weight decay touches: the published choices, by name.

The choice is made by the parameter's name, not by its number of dimensions: a scanned
layer normalisation has two, a fused qkv bias has three.
"""

import re
from collections.abc import Callable, Sequence

from clipjax.ranges import FieldError
from clipjax.trees import matching_leaves

_GAIN_OR_BIAS = r"(^|/)(scale|logit_scale|logit_bias|\w*bias)$"

NamePredicate = Callable[[str], bool]


def _all_but(pattern: str) -> NamePredicate:
    return lambda name: re.search(pattern, name) is None


DECAY_MASKS: dict[str, NamePredicate] = {
    "all": lambda name: True,
    "kernels": lambda name: name.endswith("kernel"),  # big_vision
    # All weights that are not gains or biases (arXiv:2103.00020, section 2.5).
    "openai": _all_but(_GAIN_OR_BIAS),
    # OpenCLIP today; and its published LAION and DataComp runs, which decay position embeddings.
    "openclip": _all_but(rf"{_GAIN_OR_BIAS}|(^|/)(position_embedding|class_embedding)$"),
    "openclip_legacy": _all_but(rf"{_GAIN_OR_BIAS}|(^|/)class_embedding$"),
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
