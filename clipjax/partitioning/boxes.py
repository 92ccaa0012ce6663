"""What flax keeps of logical axes: boxes around variables, a context's rules, hints on arrays.

Beside layers and models, which are flax modules, only this file imports flax.linen.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from flax import linen as nn

from clipjax.partitioning.rules import Rule


def unbox(variables: Any) -> Any:
    """The variables without the boxes that hold their logical axes."""
    return nn.unbox(variables)


def box_like(boxed: Any, values: Any) -> Any:
    """The values in the boxes of another tree of variables."""
    return nn.meta.replace_boxed(boxed, values)


def in_box(value: jax.Array, axes: Sequence[str | None]) -> Any:
    """An array in a box that holds its logical axes `[ndim]`."""
    return nn.LogicallyPartitioned(value, tuple(axes))


def boxed_axes(variables: Any) -> Any:
    """The logical axes that the boxes hold: a `PartitionSpec` for each variable."""
    return nn.get_partition_spec(variables)


def under_rules(rules: Sequence[Rule]) -> AbstractContextManager[None]:
    """The context in which the hints on arrays become shardings by these rules."""
    return nn.logical_axis_rules(rules)


def rules_in_force() -> Sequence[Rule]:
    """The rules of the context, none outside of one."""
    return nn.get_logical_axis_rules()


def hint_axes(array: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Says the logical axes `[ndim]` of an array, where there are rules."""
    return nn.with_logical_constraint(array, tuple(axes))
