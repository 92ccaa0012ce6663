"""Metrics of a dense logit matrix; the tiled layouts get the same ones from their tiles."""

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Bool, Float
from clipjax.losses.pair_rule import cosines


def pair_metrics(
    image_embeds: Float[Array, "batch embed"],
    text_embeds: Float[Array, "batch embed"],
    logit_scale: Float[Array, ""],
    positive: Bool[Array, "batch batch"] | None = None,
) -> dict[str, Array]:
    """In-batch retrieval accuracy and mean cosines.

    Args:
        image_embeds: `[batch, embed]`, L2-normalised.
        text_embeds: `[batch, embed]`, L2-normalised; row i is the caption of image i.
        logit_scale: the LOG of the multiplicative scale.
        positive: which pairs match, `[batch, batch]`; None: the diagonal.

    Returns:
        `image_to_text_top1`, `text_to_image_top1`: share of examples of which a positive beats
        every negative (a tie is a miss, so a collapsed model scores 0, not 1); `positive_cosine`,
        `negative_cosine`: means over matching and other pairs; `logit_scale`, exponentiated; with
        `positive`, `positives_per_example`: their mean number, the own pair included. Float32
        scalars without a gradient.
    """
    image_embeds, text_embeds, logit_scale = jax.lax.stop_gradient(
        (image_embeds, text_embeds, logit_scale)
    )
    batch = image_embeds.shape[0]
    cosine = cosines(image_embeds, text_embeds)
    if positive is not None:
        return _of_several(cosine, positive, logit_scale)
    own = jnp.diagonal(cosine)
    negative = jnp.where(jnp.eye(batch, dtype=bool), -jnp.inf, cosine)
    num_negatives = max(batch * (batch - 1.0), 1.0)
    return {
        "image_to_text_top1": jnp.mean(own > jnp.max(negative, axis=1), dtype=jnp.float32),
        "text_to_image_top1": jnp.mean(own > jnp.max(negative, axis=0), dtype=jnp.float32),
        "positive_cosine": jnp.mean(own),
        "negative_cosine": (jnp.sum(cosine) - jnp.sum(own)) / num_negatives,
        "logit_scale": jnp.exp(logit_scale.astype(jnp.float32)),
    }


def _of_several(cosine: Array, positive: Array, logit_scale: Array) -> dict[str, Array]:
    of_positives = jnp.where(positive, cosine, -jnp.inf)
    of_negatives = jnp.where(positive, -jnp.inf, cosine)
    right = [of_positives.max(axis) > of_negatives.max(axis) for axis in (1, 0)]
    batch = cosine.shape[0]
    count, total = jnp.sum(positive, dtype=jnp.float32), jnp.sum(cosine, where=positive)
    return {
        "image_to_text_top1": jnp.mean(right[0], dtype=jnp.float32),
        "text_to_image_top1": jnp.mean(right[1], dtype=jnp.float32),
        "positive_cosine": total / count,
        "negative_cosine": (jnp.sum(cosine) - total) / jnp.maximum(float(batch) ** 2 - count, 1.0),
        "logit_scale": jnp.exp(logit_scale.astype(jnp.float32)),
        "positives_per_example": count / batch,
    }
