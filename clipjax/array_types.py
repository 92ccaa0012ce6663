"""Array annotations: shape strings as `Float[Array, "batch embed"]`, checked only under pytest.

The tests install jaxtyping's import hook (tests/conftest.py); elsewhere annotations cost nothing.
"""

from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Num, UInt8

PyTree: TypeAlias = Any


class Patches(NamedTuple):
    """Images of any aspect as patches, padded to one number of them (arXiv:2307.06304).

    Attributes:
        pixels: `[..., patches, patch_size^2 * 3]`: an image's patches row by row, a patch's pixels
            row by row with the channels last; then padding.
        grid: `[..., 2]` int32: rows and columns of patches that the image has, at least 1.
    """

    pixels: Any
    grid: Any


__all__ = ["Array", "Bool", "Float", "Int", "Num", "Patches", "PyTree", "UInt8"]
