"""Optimizers under sharding tables, Muon under all: one device's numbers, the state in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from clipjax import partitioning
from clipjax.optim import make_optimizer
from clipjax.train_state import create_train_state
from clipjax.trees import flatten_with_names

AXES = {
    "text_encoder": {
        "blocks": {
            "qkv_kernel": P("layers", "embed", "qkv", "heads", "head_dim"),
            "out_kernel": P("layers", "heads", "head_dim", "embed"),
            "kernel": P("layers", "embed", "mlp"),
            "bias": P("layers", "mlp"),
        },
        "token_embedding": P("vocab", "embed"),
    }
}
SHAPES = {
    "text_encoder": {
        "blocks": {
            "qkv_kernel": (2, 16, 3, 2, 8),
            "out_kernel": (2, 2, 8, 16),
            "kernel": (2, 32, 64),
            "bias": (2, 64),
        },
        "token_embedding": (40, 16),
    }
}
MESHES = {"tensor": {"data": 2, "fsdp": 2, "tensor": 2}}


def draw(seed):
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), SHAPES, is_leaf=is_shape)


def updated(tx, state_sharding=None):
    """The parameters and the optimizer's state after two steps."""

    def steps(params, *gradients):
        state = tx.init(params)
        for number, grads in enumerate(gradients):
            updates, state = tx.update(grads, state, params, step=jnp.asarray(number))
            if state_sharding is not None:
                state = jax.lax.with_sharding_constraint(state, state_sharding.opt_state)
            params = optax.apply_updates(params, updates)
        return params, state

    trees = [draw(seed) for seed in range(3)]
    if state_sharding is None:
        return jax.jit(steps)(*trees)
    of_params = state_sharding.params
    trees = [jax.device_put(tree, of_params) for tree in trees]
    step = jax.jit(steps, out_shardings=(of_params, state_sharding.opt_state))
    return step(*trees)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("muon", "zero1"),
        ("muon", "tensor"),
        ("lamb", "tensor"),
        ("adafactor", "zero1"),
        *(pytest.param("muon", table, marks=pytest.mark.slow) for table in ("replicated", "fsdp")),
        *(
            pytest.param(name, "tensor", marks=pytest.mark.slow)
            for name in ("adafactor", "stableadamw")
        ),
        *(
            pytest.param(name, "fsdp", marks=pytest.mark.slow)
            for name in ("adamw", "lion", "lamb", "adafactor", "stableadamw")
        ),
    ],
)
def test_a_sharded_update_is_that_of_one_device(name, table):
    tx = make_optimizer(draw(0), schedule=optax.constant_schedule(0.01), name=name)
    shapes = jax.eval_shape(lambda: create_train_state({"params": draw(0)}, tx))
    axes = partitioning.state_axes(shapes, {"params": AXES}, tx)
    mesh = partitioning.make_mesh(MESHES.get(table, {"data": 4, "fsdp": 2}))
    rules = partitioning.rules_of(table)
    shardings = partitioning.state_shardings(shapes, axes, mesh, rules)
    params, state = updated(tx, shardings)
    wanted, wanted_state = updated(tx)
    for (key, found), leaf in zip(
        flatten_with_names((params, state)), jax.tree.leaves((wanted, wanted_state)), strict=True
    ):
        np.testing.assert_allclose(found, leaf, rtol=1e-4, atol=1e-6, err_msg=key)
    for key, leaf in flatten_with_names(state):
        whole = leaf.sharding.is_fully_replicated
        if key.endswith(("kernel", "token_embedding")) and leaf.ndim and leaf.size > 500:
            assert whole == (table == "replicated"), f"{key} {leaf.shape} {leaf.sharding}"
