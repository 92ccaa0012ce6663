"""The softmax contrastive loss of CLIP: the dense reference, and what it does inside one tile."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Bool, Float
from clipjax.losses.pair_rule import Stats, dense_logits


def clip_loss(
    image_embeds: Float[Array, "batch embed"],
    text_embeds: Float[Array, "batch embed"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""] | None = None,
    positive: Bool[Array, "batch batch"] | None = None,
) -> Float[Array, ""]:
    """Symmetric cross-entropy of matching each image to its text and each text to its image.

    `S_ij = exp(logit_scale) <image_i, text_j>`,
    `loss = mean_i (logsumexp_j S_ij + logsumexp_j S_ji) / 2 - S_ii`.

    With several positives P_i of row i, the target is spread evenly over them: in place of S_ii
    stands their mean, `sum_{j in P_i} S_ij / |P_i|`.

    The dense reference: it holds the whole `[batch, batch]` matrix. Training uses `make_loss`.

    Args:
        image_embeds: `[batch, embed]`, L2-normalised, float32 or bfloat16.
        text_embeds: `[batch, embed]`, L2-normalised; row i is the caption of image i.
        logit_scale: the LOG of the multiplicative scale (inverse temperature).
        logit_bias: added to every logit; the softmax cancels it, so its gradient is zero.
        positive: which pairs match, `[batch, batch]`, an equivalence of examples; None: the
            diagonal.

    Returns:
        The loss, float32, natural units (nats).

    Reference: arXiv:2103.00020; several positives: L_out of arXiv:2004.11362, arXiv:2204.03610.
    """
    logits = dense_logits(image_embeds, text_embeds, logit_scale, logit_bias)
    per_row = jax.nn.logsumexp(logits, axis=1)
    per_column = jax.nn.logsumexp(logits, axis=0)
    both = (per_row + per_column) / 2
    if positive is None:
        return jnp.mean(both - jnp.diagonal(logits))
    return jnp.mean(both - jnp.mean(logits, axis=1, where=positive))


@dataclasses.dataclass(frozen=True)
class SoftmaxPairs:
    """Softmax over rows and over columns, as a rule for tiles of the other logits."""

    directions: int = 2
    uses_bias: bool = False

    def init(self, num: int, *, axis: int) -> Stats:
        """Statistics of no logits at all. The maximum is finite: -inf - -inf is not a number."""
        del axis
        return Stats(jnp.full((num,), -1e30, jnp.float32), jnp.zeros((num,), jnp.float32))

    def update(
        self, stats: Stats, logits: Array, positive: Array | None = None, *, axis: int
    ) -> Stats:
        """Online log-sum-exp: `total` is the sum of `exp(logit - largest)` over what was seen."""
        seen = stats.saw(logits, positive, axis=axis)
        largest = seen.largest()
        shifted = jnp.exp(logits - jnp.expand_dims(largest, axis))
        total = stats.total * jnp.exp(stats.largest() - largest) + jnp.sum(shifted, axis=axis)
        return seen._replace(total=total)

    def merge(self, stats: Stats, group: Any) -> Stats:
        """Merge the partial statistics of a device group; each device keeps its own slice."""
        merged = stats.maxima_over(group)
        total = stats.total * jnp.exp(stats.largest() - merged.largest())
        return merged._replace(total=total).own_part(group)

    def example_loss(self, positives: Array, rows: Stats, columns: Stats) -> Array:
        """`softplus(logsumexp(others) - positive)`, both ways.

        The same as `logsumexp(all) - positive`, without cancelling two large numbers when the
        positive dominates. Where there are other positives, the mean of all takes its place.
        """
        per_row = jax.nn.softplus(_log_sum(rows) - positives)
        loss = (per_row + jax.nn.softplus(_log_sum(columns) - positives)) / 2
        if rows.positives is None:
            return loss
        count, total = rows.positives.count, rows.positives.total
        return loss + (count * positives - total) / (count + 1.0)

    def residuals(self, rows: Stats, columns: Stats) -> tuple[Array, Array]:
        """Log-sum-exps of the other logits of each row and each column."""
        return _log_sum(rows), _log_sum(columns)

    def normalisers(self, positives: Array, residuals: tuple[Array, Array]) -> tuple[Array, Array]:
        """Log-sum-exps of each whole row and column."""
        rows, columns = residuals
        return jnp.logaddexp(rows, positives), jnp.logaddexp(columns, positives)

    def negative_weights(self, logits: Array, row_lse: Array, column_lse: Array) -> Array:
        """`2 batch dloss/dlogit` off the diagonal; no exponent is above zero."""
        return jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - column_lse[None, :])

    def other_positive_weights(
        self, logits: Array, row_lse: Array, column_lse: Array, share: Array
    ) -> Array:
        """Probabilities less the targets, one over the positives of the row."""
        return self.negative_weights(logits, row_lse, column_lse) - 2 * share[:, None]

    def positive_weights(
        self, positives: Array, residuals: tuple[Array, Array], share: Array | None
    ) -> Array:
        """`2 batch dloss/dlogit` on the diagonal."""
        rows, columns = residuals
        weights = -jax.nn.sigmoid(rows - positives) - jax.nn.sigmoid(columns - positives)
        return weights if share is None else weights + 2 * (1 - share)


def _log_sum(stats: Stats) -> Array:
    return stats.largest() + jnp.log(stats.total)
