"""Deviations of the published initialisations (openai/CLIP initialize_parameters, torch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.layers.initializers import BLOCK_INITS

WIDTH, MLP, DEPTH = 64, 192, 3
ROOT3 = 3**0.5  # U(-b, b) has the deviation b / sqrt(3)
WANTED = {
    "openai_text": {
        "qkv": WIDTH**-0.5,
        "out": WIDTH**-0.5 * (2 * DEPTH) ** -0.5,
        "fc": (2 * WIDTH) ** -0.5,
        "proj": WIDTH**-0.5 * (2 * DEPTH) ** -0.5,
        "fc_bias": WIDTH**-0.5 / ROOT3,
        "proj_bias": MLP**-0.5 / ROOT3,
    },
    "bert": {"qkv": 0.02, "out": 0.02, "fc": 0.02, "proj": 0.02},
    "torch": {
        "qkv": (2 / (WIDTH + 3 * WIDTH)) ** 0.5,
        "out": WIDTH**-0.5 / ROOT3,
        "fc": WIDTH**-0.5 / ROOT3,
        "proj": MLP**-0.5 / ROOT3,
        "fc_bias": WIDTH**-0.5 / ROOT3,
        "proj_bias": MLP**-0.5 / ROOT3,
    },
    "xavier": {
        "qkv": (2 / (WIDTH + WIDTH)) ** 0.5,
        "out": (2 / (WIDTH + WIDTH)) ** 0.5,
        "fc": (2 / (WIDTH + MLP)) ** 0.5,
        "proj": (2 / (WIDTH + MLP)) ** 0.5,
        "fc_bias": 1e-6,
        "proj_bias": 1e-6,
    },
}


@pytest.mark.parametrize("name", sorted(WANTED))
def test_deviation_of_each_leaf(name):
    inits = BLOCK_INITS[name](WIDTH, MLP, DEPTH)
    for leaf, wanted in WANTED[name].items():
        draws = np.asarray(getattr(inits, leaf)(jax.random.key(0), (40_000,), jnp.float32))
        assert abs(draws.std() / wanted - 1) < 0.02, leaf
        assert abs(draws.mean()) < 0.02 * wanted, leaf
        # The uniform ones end at their bound, the normal ones have tails.
        uniform = (name == "torch" or leaf.endswith("bias")) and wanted != 1e-6
        uniform |= name == "xavier" and not leaf.endswith("bias")
        assert (np.abs(draws).max() <= wanted * ROOT3 * 1.0001) == uniform, leaf


def test_every_initialisation_is_checked():
    assert set(WANTED) == set(BLOCK_INITS)
