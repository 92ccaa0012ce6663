"""Array annotations: shape strings as `Float[Array, "batch embed"]`, checked only under pytest.

The tests install jaxtyping's import hook (tests/conftest.py); elsewhere annotations cost nothing.
"""

from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Num, UInt8

PyTree: TypeAlias = Any

__all__ = ["Array", "Bool", "Float", "Int", "Num", "PyTree", "UInt8"]
