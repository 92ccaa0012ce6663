"""The dense CLIP loss equals float64 NumPy and open_clip's ClipLoss; so does the tiled one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.losses import clip_loss, make_loss
from clipjax.losses.clip import SoftmaxPairs


def test_equals_float64(oracle):
    problem = oracle.problem()
    found = oracle.run(lambda *a: (clip_loss(*a), oracle.reference("clip", *problem)[1]), problem)
    oracle.assert_equal(found, oracle.reference("clip", *problem))


@pytest.mark.parametrize("layout", ["dense", "grid"])
def test_equals_open_clip(oracle, open_clip_golden, layout):
    problem, expected = open_clip_golden("start", "clip")
    tile_size = None if layout == "dense" else 7
    found = oracle.run(make_loss("clip", layout=layout, tile_size=tile_size), problem)
    of_loss, of_gradients = oracle.errors(found, expected)
    assert of_loss <= 1e-6
    assert max(of_gradients) <= 1e-5, of_gradients


def test_a_trained_model_keeps_its_digits(oracle, open_clip_golden):
    """A loss of 1.3e-9 nats, of which logsumexp - positive in float32 has no digit left."""
    problem, expected = open_clip_golden("trained", "clip")
    found = oracle.run(make_loss("clip", layout="grid"), problem)
    of_loss, of_gradients = oracle.errors(found, expected)
    assert of_loss <= 1e-4  # the rounding of logits near 100
    assert max(of_gradients[:3]) <= 1e-4
    assert found[2][3] == 0.0


def test_online_statistics_are_shifted():
    """Logits of 200 overflow an unshifted exponential; order and splits do not matter."""
    logits = jnp.asarray([[200.0, 150.0, -200.0, 199.0]])
    rule = SoftmaxPairs()
    stats = rule.init(1, axis=1)
    for part in (logits[:, :1] - 100, logits[:, 1:2], logits[:, 2:]):
        stats = rule.update(stats, part, axis=1)
    whole = jax.nn.logsumexp(jnp.asarray([100.0, 150.0, -200.0, 199.0]))
    np.testing.assert_allclose(rule.residuals(stats, stats)[0][0], whole, rtol=1e-6)
    assert jnp.isinf(jnp.exp(logits[0, 0]))
