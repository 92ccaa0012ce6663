import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.layers.normalization import LayerNorm, l2_normalise


def reference(x, eps):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def normalise(x, eps):
    params = {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    return LayerNorm(eps).apply({"params": params}, x)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_eps_counts(eps):
    x = 1e-2 * jax.random.normal(jax.random.key(0), (4, 32))
    found = normalise(x, eps)
    np.testing.assert_allclose(found, reference(x, eps), atol=1e-6)
    other = {1e-5: 1e-6, 1e-6: 1e-5}[eps]
    assert np.abs(found - reference(x, other)).max() > 1e-2


def test_statistics_are_float32_under_bfloat16():
    # Far from zero bfloat16 statistics lose the mean: next to 64 its numbers are 0.5 apart.
    x = (64.2 + jax.random.normal(jax.random.key(0), (4, 512))).astype(jnp.bfloat16)
    found = normalise(x, 1e-5)
    assert found.dtype == jnp.bfloat16
    want = reference(x, 1e-5)
    np.testing.assert_allclose(found.astype(jnp.float32), want, atol=2e-2)
    centred = x - x.mean(-1, keepdims=True)
    low = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True))
    assert np.abs(low.astype(jnp.float32) - want).max() > 5e-2


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_lean_values_and_gradients_are_the_same(dtype, atol):
    keys = jax.random.split(jax.random.key(0), 4)
    x = (2 + 3 * jax.random.normal(keys[0], (2, 3, 32))).astype(dtype)
    weights = jax.random.normal(keys[1], x.shape)
    params = {"scale": jax.random.normal(keys[2], (32,)), "bias": jax.random.normal(keys[3], (32,))}

    def run(lean, params, x):
        def loss(params, x):
            out = LayerNorm(1e-5, lean).apply({"params": params}, x)
            return (out * weights).sum(), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    found, wanted = run(True, params, x), run(False, params, x)
    jax.tree.map(
        lambda f, w: np.testing.assert_allclose(np.float32(f), np.float32(w), atol=atol, rtol=atol),
        found,
        wanted,
    )
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(
        lambda leaf: leaf.dtype, wanted
    )

    def kept(lean):
        """Elements that the backward pass is left."""
        pullback = jax.vjp(lambda x: LayerNorm(1e-5, lean).apply({"params": params}, x), x)[1]
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept(True) < 1.3 * x.size + 100 < 2 * x.size < kept(False)


def test_l2_normalise():
    x = jax.random.normal(jax.random.key(0), (3, 8)).at[1].set(0)
    found = l2_normalise(x)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=-1), [1, 0, 1], atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: l2_normalise(x)[:, 0].sum())(x)).all()
