import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.layers.activations import ACTIVATIONS, activation

X = np.linspace(-6, 6, 101)
FORMULAS = {
    "quick_gelu": X / (1 + np.exp(-1.702 * X)),
    "gelu": X * np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in X]),
    "swish": X / (1 + np.exp(-X)),
    "gelu_tanh": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_formula(name):
    found = activation(name)(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(found, FORMULAS[name], atol=2e-6)
    # No other formula would pass for this one.
    others = [FORMULAS[other] for other in FORMULAS if other != name]
    assert all(np.abs(found - other).max() > 1e-4 for other in others)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_lean_activations_leave_their_input_alone(name):
    x = jnp.asarray(X, jnp.float32)
    (found, pull), (wanted, plain) = (
        jax.vjp(activation(name, lean=lean), x) for lean in (True, False)
    )
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(pull(x)[0], plain(x)[0], atol=1e-6)
    assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [x.shape]


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'gelo' is unknown; allowed are .*quick_gelu"):
        activation("gelo")
    assert set(FORMULAS) == set(ACTIVATIONS)
