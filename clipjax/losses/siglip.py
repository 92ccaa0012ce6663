"""The pairwise sigmoid loss of SigLIP: the dense reference, and what it does inside one tile."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Bool, Float
from clipjax.losses.pair_rule import Stats, dense_logits


def siglip_loss(
    image_embeds: Float[Array, "batch embed"],
    text_embeds: Float[Array, "batch embed"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""] | None = None,
    positive: Bool[Array, "batch batch"] | None = None,
) -> Float[Array, ""]:
    """Binary classification of every image-text pair: matching or not.

    `z_ij = exp(logit_scale) <image_i, text_j> + logit_bias`,
    `loss = 1/batch sum_ij softplus(-z_ij if i and j match else z_ij)`.

    The dense reference: it holds the whole `[batch, batch]` matrix. Training uses `make_loss`.

    Args:
        image_embeds: `[batch, embed]`, L2-normalised, float32 or bfloat16.
        text_embeds: `[batch, embed]`, L2-normalised; row i is the caption of image i.
        logit_scale: the LOG of the multiplicative scale (inverse temperature).
        logit_bias: added to every logit; None means 0.
        positive: which pairs match, `[batch, batch]`; None: the diagonal.

    Returns:
        The loss, float32, nats per example (a sum over the pairs of each example).

    Reference: arXiv:2303.15343.
    """
    logits = dense_logits(image_embeds, text_embeds, logit_scale, logit_bias)
    if positive is None:
        signs = 2.0 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1.0
    else:
        signs = jnp.where(positive, 1.0, -1.0)
    return jnp.mean(jnp.sum(jax.nn.softplus(-signs * logits), axis=1))


@dataclasses.dataclass(frozen=True)
class SigmoidPairs:
    """Independent sigmoids, as a rule for tiles of the other logits.

    Maxima are kept for the top-1 metrics only; losses are summed along rows only.
    """

    directions: int = 1
    uses_bias: bool = True

    def init(self, num: int, *, axis: int) -> Stats:
        """Statistics of no logits at all."""
        total = jnp.zeros((num,), jnp.float32) if axis == 1 else None
        return Stats(jnp.full((num,), -1e30, jnp.float32), total)

    def update(
        self, stats: Stats, logits: Array, positive: Array | None = None, *, axis: int
    ) -> Stats:
        """Add a tile: `total` is the sum of `softplus(logit)`, of positives `softplus(-logit)`."""
        seen = stats.saw(logits, positive, axis=axis)
        if axis == 0:
            return seen
        if positive is not None:
            logits = jnp.where(positive, -logits, logits)
        # jnp.logaddexp guards against NaN twice; the tile has -inf at most, so this form is enough.
        softplus = jnp.maximum(logits, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        return seen._replace(total=stats.total + jnp.sum(softplus, axis=axis))

    def merge(self, stats: Stats, group: Any) -> Stats:
        """Merge the partial statistics of a device group; each device keeps its own slice."""
        return stats.maxima_over(group).own_part(group)

    def example_loss(self, positives: Array, rows: Stats, columns: Stats) -> Array:
        """Loss of the own pair plus that of the others in its row."""
        del columns
        return jax.nn.softplus(-positives) + rows.total

    def residuals(self, rows: Stats, columns: Stats) -> tuple[None, None]:
        """Nothing: a pair's gradient depends on its own logit only."""
        del rows, columns
        return None, None

    def normalisers(self, positives: Array, residuals: tuple[None, None]) -> tuple[None, None]:
        """Nothing, for the same reason."""
        del positives
        return residuals

    def negative_weights(self, logits: Array, row_lse: None, column_lse: None) -> Array:
        """`batch dloss/dlogit` off the diagonal."""
        del row_lse, column_lse
        return jax.nn.sigmoid(logits)

    def other_positive_weights(
        self, logits: Array, row_lse: None, column_lse: None, share: Array
    ) -> Array:
        """`batch dloss/dlogit` of positives off the diagonal."""
        del row_lse, column_lse, share
        return -jax.nn.sigmoid(-logits)

    def positive_weights(
        self, positives: Array, residuals: tuple[None, None], share: Array | None
    ) -> Array:
        """`batch dloss/dlogit` on the diagonal."""
        del residuals, share
        return -jax.nn.sigmoid(-positives)
