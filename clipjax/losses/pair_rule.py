"""The interface of a loss that can run tile by tile, and the logits themselves.

The tiles (clipjax/losses/tiles.py) hold NEGATIVE logits only: the diagonal reads -inf there, and
the positive pair, which always lives on one device, is added exactly, in float32, afterwards.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax

from clipjax.array_types import Array


class Stats(NamedTuple):
    """Running statistics of the negative logits of each row (or column)."""

    max: Array
    total: Any  # Array, or None where the rule keeps none


@runtime_checkable
class PairRule(Protocol):
    """A loss over all pairs, tile by tile. Frozen and hashable; axis 1 = rows, 0 = columns."""

    @property
    def directions(self) -> int:
        """The loss is a mean over `directions * batch` terms."""

    @property
    def uses_bias(self) -> bool:
        """Whether a constant added to every logit changes the loss."""

    def init(self, num: int, *, axis: int) -> Stats:
        """Statistics before the first tile."""

    def update(self, stats: Stats, logits: Array, *, axis: int) -> Stats:
        """Statistics after one more tile, reduced over `axis`."""

    def merge(self, stats: Stats, group: Any) -> Stats:
        """Merge over a group of devices (layouts.DeviceGroup); each keeps its own slice."""

    def example_loss(self, positives: Array, rows: Stats, columns: Stats) -> Array:
        """Loss of each example, from its positive logit and the statistics of its negatives."""

    def residuals(self, rows: Stats, columns: Stats) -> tuple[Array | None, Array | None]:
        """What the backward pass needs of the statistics."""

    def normalisers(self, positives: Array, residuals: Any) -> tuple[Array | None, Array | None]:
        """What `negative_weights` needs of each row and of each column."""

    def negative_weights(self, logits: Array, row: Any, column: Any) -> Array:
        """`directions * batch * dloss/dlogit` off the diagonal; 0 where the logit is -inf."""

    def positive_weights(self, positives: Array, residuals: Any) -> Array:
        """`directions * batch * dloss/dlogit` on the diagonal."""


def product(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """A matrix product that rounds neither factor and accumulates in float32, on any platform.

    Products of bfloat16 numbers are exact in float32. Of float32 numbers they need the highest
    precision: by default a TPU rounds the factors to bfloat16 and a GPU to TF32, and the negatives
    would be of other numbers than the positives, which are multiplied element by element.

    Args:
        left: a matrix, float32 or bfloat16.
        right: likewise, of the same dtype.
        contract: the dimension of each that is summed over.
    """
    exact = left.dtype == right.dtype == jnp.bfloat16
    return lax.dot_general(
        left,
        right,
        ((contract[:1], contract[1:]), ((), ())),
        precision=None if exact else lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def cosines(rows: Array, columns: Array) -> Array:
    """`rows @ columns.T`, float32 whatever the inputs are."""
    return product(rows, columns, (1, 1))


def dense_logits(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, logit_bias: Array | None
) -> Array:
    """All logits, `[batch, batch]` float32."""
    logits = jnp.exp(logit_scale.astype(jnp.float32)) * cosines(image_embeds, text_embeds)
    return logits if logit_bias is None else logits + logit_bias.astype(jnp.float32)
