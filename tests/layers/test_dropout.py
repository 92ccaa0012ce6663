import jax
import jax.numpy as jnp
import numpy as np

from clipjax.layers.dropout import Dropout, uniform_per_example

KEY = jax.random.key(3)


def drop(x, ids, train=True, rate=0.25):
    return Dropout(rate).apply({}, x, ids, train, rngs={"dropout": KEY})


def test_draws_follow_the_examples():
    ids = jnp.arange(6)
    order = jnp.array([4, 2, 0, 5, 1, 3])
    draws = uniform_per_example(KEY, ids, (7,))
    np.testing.assert_array_equal(uniform_per_example(KEY, ids[order], (7,)), draws[order])
    np.testing.assert_array_equal(uniform_per_example(KEY, ids[2:4], (7,)), draws[2:4])
    assert len(np.unique(draws)) == draws.size
    other = uniform_per_example(jax.random.key(4), ids, (7,))
    assert not np.intersect1d(draws, other).size


def test_rate_and_scale():
    x = jnp.ones((64, 10, 16))
    out = drop(x, None)
    assert set(np.unique(out)) == {0, np.float32(4 / 3)}
    assert abs((out == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / x.size) ** 0.5
    np.testing.assert_array_equal(out, drop(x, jnp.arange(64)))


def test_evaluation_drops_nothing():
    x = jnp.ones((2, 3, 4))
    np.testing.assert_array_equal(drop(x, None, train=False), x)
    np.testing.assert_array_equal(drop(x, None, rate=0.0), x)
