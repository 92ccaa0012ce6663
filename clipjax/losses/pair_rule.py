"""The interface of a loss that can run tile by tile, and the logits themselves.

The tiles (clipjax/losses/tiles.py) hold every logit but the own pair of an example: the diagonal
reads -inf there, and that pair, which always lives on one device, is added exactly, in float32,
afterwards. All of a tile are negatives, unless other examples of equal captions are positives too
(clipjax/losses/equal_rows.py).
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax

from clipjax.array_types import Array


class Positives(NamedTuple):
    """Running statistics of the positives of each row (or column) besides its own pair."""

    max: Array
    # Of rows only, as each such pair stands in one row and in one column; else None.
    total: Any
    count: Any


def no_positives(num: int, *, axis: int) -> Positives:
    """Statistics before the first tile."""
    zeros = jnp.zeros((num,), jnp.float32) if axis == 1 else None
    return Positives(jnp.full((num,), -1e30, jnp.float32), zeros, zeros)


class Stats(NamedTuple):
    """Running statistics of the logits of each row (or column), without its own pair."""

    max: Array  # of the negatives
    total: Any  # Array, or None where the rule keeps none
    positives: Positives | None = None  # None where the own pair is the only one

    def largest(self) -> Array:
        """The largest logit of both kinds."""
        return self.max if self.positives is None else jnp.maximum(self.max, self.positives.max)

    def saw(self, logits: Array, positive: Array | None, *, axis: int) -> "Stats":
        """After one more tile: all but `total`, which is the rule's."""
        if positive is None or self.positives is None:
            return self._replace(max=jnp.maximum(self.max, jnp.max(logits, axis=axis)))
        top, total, count = self.positives
        of_positives = jnp.where(positive, logits, -jnp.inf)
        top = jnp.maximum(top, jnp.max(of_positives, axis=axis))
        if axis == 1:
            total = total + jnp.sum(jnp.where(positive, logits, 0.0), axis=axis)
            count = count + jnp.sum(positive, axis=axis, dtype=jnp.float32)
        negatives = jnp.where(positive, -jnp.inf, logits)
        largest = jnp.maximum(self.max, jnp.max(negatives, axis=axis))
        return self._replace(max=largest, positives=Positives(top, total, count))

    def maxima_over(self, group: Any) -> "Stats":
        """Maxima over a group of devices (layouts.DeviceGroup), totals still of this one."""
        if self.positives is None:
            return self._replace(max=group.pmax(self.max))
        positives = self.positives._replace(max=group.pmax(self.positives.max))
        return self._replace(max=group.pmax(self.max), positives=positives)

    def own_part(self, group: Any) -> "Stats":
        """Sums of the totals over a group, of equal maxima; this device's slice of all."""

        def scattered(x: Any) -> Any:
            return None if x is None else group.psum_scatter(x)

        total, positives = scattered(self.total), self.positives
        if positives is not None:
            positives = Positives(
                group.own_slice(positives.max),
                scattered(positives.total),
                scattered(positives.count),
            )
        return Stats(group.own_slice(self.max), total, positives)


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

    def update(
        self, stats: Stats, logits: Array, positive: Array | None = None, *, axis: int
    ) -> Stats:
        """Statistics after one more tile, reduced over `axis`; `positive` says which are."""

    def merge(self, stats: Stats, group: Any) -> Stats:
        """Merge over a group of devices (layouts.DeviceGroup); each keeps its own slice."""

    def example_loss(self, positives: Array, rows: Stats, columns: Stats) -> Array:
        """Loss of each example, from the logit of its own pair and the statistics of the others.

        Where there are other positives, the sum over the batch is what counts: a pair that stands
        in two examples may be booked on either.
        """

    def residuals(self, rows: Stats, columns: Stats) -> tuple[Array | None, Array | None]:
        """What the backward pass needs of the statistics."""

    def normalisers(self, positives: Array, residuals: Any) -> tuple[Array | None, Array | None]:
        """What `negative_weights` needs of each row and of each column."""

    def negative_weights(self, logits: Array, row: Any, column: Any) -> Array:
        """`directions * batch * dloss/dlogit` off the diagonal; 0 where the logit is -inf."""

    def other_positive_weights(self, logits: Array, row: Any, column: Any, share: Array) -> Array:
        """The same of positives off the diagonal; `share` is one over the positives of each row."""

    def positive_weights(self, positives: Array, residuals: Any, share: Array | None) -> Array:
        """`directions * batch * dloss/dlogit` on the diagonal; `share` None stands for ones."""


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
