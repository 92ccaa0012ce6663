"""The rest of a step as XLA's GPU compiler has it."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipjax.plan import make_topology
from clipjax.plan.gpu import COMPILER_OPTIONS
from clipjax.plan.hlo import parse, walk
from clipjax.plan.traffic import count_traffic
from clipjax.train_state import create_train_state
from clipjax.train_step import update_state

pytestmark = pytest.mark.gpu


def test_a_step_that_may_be_skipped_writes_the_state_once():
    """The norm reads the gradient; the vote on what would be written reads it, the parameters and
    both moments, and leaves the new parameters (five copies); the update reads four, writes three.

    A `lax.cond` around the update copies the whole state first, three copies more.
    """
    devices = make_topology("h100:1").devices
    mesh = jax.make_mesh((1,), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    kernels = {f"kernel_{i}": jnp.zeros((12, 768, 3072)) for i in range(2)}
    tx = optax.with_extra_args_support(optax.adamw(1e-3))

    def state_of(params):
        return create_train_state({"params": params}, tx)

    def shaped(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree
        )

    def update(state, grads, loss):
        return update_state(
            state, grads, loss, tx, model_state={}, max_logit_scale=None, ema_decay=None
        )

    params = jax.eval_shape(lambda: kernels)
    state, grads = shaped(jax.eval_shape(state_of, params)), shaped(params)
    loss = shaped(jax.ShapeDtypeStruct((), jnp.float32))
    compiled = jax.jit(update, donate_argnums=0).lower(state, grads, loss).compile(COMPILER_OPTIONS)
    module = parse(compiled.as_text())
    copy = sum(x.size * 4 for x in jax.tree.leaves(params))
    assert 12.9 < count_traffic(module, walk(module)).hbm / copy < 13.1
    assert compiled.memory_analysis().temp_size_in_bytes < 1.01 * copy
