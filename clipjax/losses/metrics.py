"""Metrics of a dense logit matrix; the tiled layouts get the same ones from their tiles."""

import jax
import jax.numpy as jnp

from clipjax.array_types import Array, Float
from clipjax.losses.pair_rule import cosines


def pair_metrics(
    image_embeds: Float[Array, "batch embed"],
    text_embeds: Float[Array, "batch embed"],
    logit_scale: Float[Array, ""],
) -> dict[str, Array]:
    """In-batch retrieval accuracy and mean cosines.

    Args:
        image_embeds: `[batch, embed]`, L2-normalised.
        text_embeds: `[batch, embed]`, L2-normalised; row i is the caption of image i.
        logit_scale: the LOG of the multiplicative scale.

    Returns:
        `image_to_text_top1`, `text_to_image_top1`: share of examples whose positive beats every
        negative (a tie is a miss, so a collapsed model scores 0, not 1); `positive_cosine`,
        `negative_cosine`: means over matching and other pairs; `logit_scale`, exponentiated.
        Float32 scalars without a gradient.
    """
    image_embeds, text_embeds, logit_scale = jax.lax.stop_gradient(
        (image_embeds, text_embeds, logit_scale)
    )
    batch = image_embeds.shape[0]
    cosine = cosines(image_embeds, text_embeds)
    positive = jnp.diagonal(cosine)
    negative = jnp.where(jnp.eye(batch, dtype=bool), -jnp.inf, cosine)
    num_negatives = max(batch * (batch - 1.0), 1.0)
    return {
        "image_to_text_top1": jnp.mean(positive > jnp.max(negative, axis=1), dtype=jnp.float32),
        "text_to_image_top1": jnp.mean(positive > jnp.max(negative, axis=0), dtype=jnp.float32),
        "positive_cosine": jnp.mean(positive),
        "negative_cosine": (jnp.sum(cosine) - jnp.sum(positive)) / num_negatives,
        "logit_scale": jnp.exp(logit_scale.astype(jnp.float32)),
    }
