"""The layout of tokens is said of the part that a device has: nothing is sent, the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint

from clipjax.layers import row_major as module
from clipjax.layers.row_major import AXES, row_major
from clipjax.partitioning import batch_sharding, make_mesh
from clipjax.partitioning.rules import LOGICAL_AXIS_RULES

X = np.random.default_rng(0).standard_normal((8, 3, 16)).astype(np.float32)
MESHES = {
    "replicated": {"data": 8},
    "zero1": {"data": 4, "fsdp": 2},
    "fsdp": {"data": 2, "fsdp": 4},
    "tensor": {"data": 4, "tensor": 2},
}


def compiled(table):
    """Values and gradient of a function under a sharding table, and the program."""
    mesh = make_mesh(MESHES[table])
    x = jax.device_put(X, batch_sharding(mesh))

    def loss(x):
        x = nn.with_logical_constraint(x, AXES)
        x = module.row_major(jnp.sin(x))
        return (nn.with_logical_constraint(x, AXES) ** 2).sum()

    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXIS_RULES[table].params):
        run = jax.jit(jax.value_and_grad(loss))
        return run(x), run.lower(x).compile().as_text()


@pytest.mark.parametrize("table", MESHES)
def test_a_device_lays_out_its_own_tokens(table):
    (value, grad), text = compiled(table)
    np.testing.assert_allclose(value, (np.sin(X) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, np.sin(2 * X), atol=1e-5)
    assert "all-gather" not in text


def test_left_to_the_partitioner_it_gathers_the_batch(monkeypatch):
    """Negative control: the constraint of the whole array."""
    whole = with_layout_constraint
    monkeypatch.setattr(module, "row_major", lambda x: whole(x, Layout((0, 1, 2))))
    assert "all-gather" in compiled("fsdp")[1]


def test_without_a_mesh_it_is_the_constraint_alone():
    np.testing.assert_array_equal(jax.jit(row_major)(X), X)
