"""Metrics of a batch whose answer is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.losses import make_loss


def test_by_hand():
    """Texts 0 and 1 are swapped; 2 and 3 are right."""
    image = jnp.eye(4, dtype=jnp.float32)
    text = image[jnp.asarray([1, 0, 2, 3])]
    for layout in ("dense", "grid"):
        loss_fn = jax.jit(make_loss("clip", layout=layout))
        _, metrics = loss_fn(image, text, jnp.float32(np.log(5.0)))
        expected = {
            "image_to_text_top1": 0.5,
            "text_to_image_top1": 0.5,
            "positive_cosine": 0.5,
            "negative_cosine": 2 / 12,
            "logit_scale": 5.0,
        }
        assert metrics.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(metrics[key], value, rtol=1e-6, err_msg=key)


def test_a_collapsed_model_scores_nothing():
    same = jnp.ones((4, 1), jnp.float32)
    for layout in ("dense", "grid"):
        _, metrics = jax.jit(make_loss("siglip", layout=layout))(same, same, jnp.float32(0.0))
        assert metrics["image_to_text_top1"] == metrics["text_to_image_top1"] == 0.0
