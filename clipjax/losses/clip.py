"""The softmax contrastive loss of CLIP: the dense reference, and what it does inside one tile."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Float
from clipjax.losses.pair_rule import Stats, dense_logits


def clip_loss(
    image_embeds: Float[Array, "batch embed"],
    text_embeds: Float[Array, "batch embed"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Symmetric cross-entropy of matching each image to its text and each text to its image.

    `S_ij = exp(logit_scale) <image_i, text_j>`,
    `loss = mean_i (logsumexp_j S_ij + logsumexp_j S_ji) / 2 - S_ii`.

    The dense reference: it holds the whole `[batch, batch]` matrix. Training uses `make_loss`.

    Args:
        image_embeds: `[batch, embed]`, L2-normalised, float32 or bfloat16.
        text_embeds: `[batch, embed]`, L2-normalised; row i is the caption of image i.
        logit_scale: the LOG of the multiplicative scale (inverse temperature).
        logit_bias: added to every logit; the softmax cancels it, so its gradient is zero.

    Returns:
        The loss, float32, natural units (nats).

    Reference: arXiv:2103.00020.
    """
    logits = dense_logits(image_embeds, text_embeds, logit_scale, logit_bias)
    per_row = jax.nn.logsumexp(logits, axis=1)
    per_column = jax.nn.logsumexp(logits, axis=0)
    return jnp.mean((per_row + per_column) / 2 - jnp.diagonal(logits))


@dataclasses.dataclass(frozen=True)
class SoftmaxPairs:
    """Softmax over rows and over columns, as a rule for tiles of negative logits."""

    directions: int = 2
    uses_bias: bool = False

    def init(self, num: int, *, axis: int) -> Stats:
        """Statistics of no logits at all. The maximum is finite: -inf - -inf is not a number."""
        del axis
        return Stats(jnp.full((num,), -1e30, jnp.float32), jnp.zeros((num,), jnp.float32))

    def update(self, stats: Stats, logits: Array, *, axis: int) -> Stats:
        """Online log-sum-exp: `total` is the sum of `exp(logit - max)` over what was seen."""
        largest = jnp.maximum(stats.max, jnp.max(logits, axis=axis))
        shifted = jnp.exp(logits - jnp.expand_dims(largest, axis))
        total = stats.total * jnp.exp(stats.max - largest) + jnp.sum(shifted, axis=axis)
        return Stats(largest, total)

    def merge(self, stats: Stats, group: Any) -> Stats:
        """Merge the partial statistics of a device group; each device keeps its own slice."""
        largest = group.pmax(stats.max)
        total = group.psum_scatter(stats.total * jnp.exp(stats.max - largest))
        return Stats(group.own_slice(largest), total)

    def example_loss(self, positives: Array, rows: Stats, columns: Stats) -> Array:
        """`softplus(logsumexp(negatives) - positive)`, both ways.

        The same as `logsumexp(all) - positive`, without cancelling two large numbers when the
        positive dominates.
        """
        per_row = jax.nn.softplus(_log_sum(rows) - positives)
        return (per_row + jax.nn.softplus(_log_sum(columns) - positives)) / 2

    def residuals(self, rows: Stats, columns: Stats) -> tuple[Array, Array]:
        """Log-sum-exps of the negatives of each row and each column."""
        return _log_sum(rows), _log_sum(columns)

    def normalisers(self, positives: Array, residuals: tuple[Array, Array]) -> tuple[Array, Array]:
        """Log-sum-exps of each whole row and column."""
        rows, columns = residuals
        return jnp.logaddexp(rows, positives), jnp.logaddexp(columns, positives)

    def negative_weights(self, logits: Array, row_lse: Array, column_lse: Array) -> Array:
        """`2 batch dloss/dlogit` off the diagonal; no exponent is above zero."""
        return jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - column_lse[None, :])

    def positive_weights(self, positives: Array, residuals: tuple[Array, Array]) -> Array:
        """`2 batch dloss/dlogit` on the diagonal."""
        rows, columns = residuals
        return -jax.nn.sigmoid(rows - positives) - jax.nn.sigmoid(columns - positives)


def _log_sum(stats: Stats) -> Array:
    return stats.max + jnp.log(stats.total)
