"""The spike guard: its formula, and a checkpoint from before it was switched on or off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax import spike_guard
from clipjax.checkpoint import CheckpointManager
from clipjax.losses import make_loss
from clipjax.train_state import create_train_state
from clipjax.train_step import make_train_step

PARAMS = {"logit_scale": np.float32(2)}


def expected(norms, factor):
    """docs/checkpoints.md in plain floats: which steps are left out, and the means."""
    out, means, mean, count = [], [], 0.0, 0
    for norm in norms:
        limit = np.inf
        if count >= 20 and mean > 0:
            limit = factor * mean / (1 - 0.99**count)
        if np.isfinite(norm):
            mean, count = 0.99 * mean + 0.01 * min(norm, limit), count + 1
        out.append(bool(np.isfinite(norm) and norm > limit))
        means.append(mean)
    return out, means


def found(norms, factor):
    def one(guard, norm):
        spike, guard = spike_guard.judge(guard, norm, jnp.isfinite(norm), factor)
        return guard, (spike, guard["mean"])

    guard, (spikes, means) = jax.lax.scan(one, spike_guard.init(), jnp.asarray(norms, jnp.float32))
    return spikes.tolist(), means, guard


def test_the_guard_is_its_formula():
    norms = np.exp(np.random.default_rng(0).normal(size=80))
    norms[[5, 30, 31, 60]] *= 1e3
    norms[40] = np.nan
    norms[:2] = 0
    spikes, means, guard = found(norms, 5.0)
    wanted, values = expected(norms, 5.0)
    assert spikes == wanted and wanted[30] and not wanted[5] and not wanted[40]
    np.testing.assert_allclose(means, values, rtol=1e-5)
    assert int(guard["spikes"]) == sum(wanted) and int(guard["count"]) == 79
    assert spikes != expected(norms, 500.0)[0]  # negative control


def test_norms_that_stay_large_are_no_spikes_for_ever():
    spikes, _, _ = found([1.0] * 50 + [1e4] * 400, 10.0)
    assert spikes[50] and not spikes[-1]
    assert not found([0.0] * 30 + [1.0] * 30, 10.0)[0][-1]


def test_a_step_needs_a_state_with_a_guard_and_a_factor_above_1():
    tx = optax.sgd(1.0)
    with pytest.raises(ValueError, match="it is above 1"):
        make_train_step(None, make_loss("clip"), tx, spike_factor=1.0)

    def apply(variables, images, tokens, **_):
        unit = jnp.ones((len(images), 4)) / 2
        return unit, unit, variables["params"]["logit_scale"], None

    step = make_train_step(apply, make_loss("clip", layout="dense"), tx, spike_factor=2.0)
    batch = {"image": jnp.ones((2, 2, 2, 3)), "text": jnp.ones((2, 1), jnp.int32)}
    with pytest.raises(ValueError, match="with_spike_guard=True"):
        step(create_train_state({"params": PARAMS}, tx), batch)


@pytest.mark.parametrize("saved", [False, True])
def test_a_checkpoint_goes_on_with_the_guard_switched(tmp_path, saved):
    def state_of(guarded, step):
        params = {"logit_scale": jnp.float32(step)}
        return create_train_state({"params": params}, optax.adam(1.0), with_spike_guard=guarded)

    metadata = {
        "config": {}, "contract": {}, "dataset_fingerprint": "", "global_batch_size": 1, "seed": 0,
    }  # fmt: skip
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state_of(not saved, 0)
    )
    with CheckpointManager(tmp_path, keep=2, metadata=metadata) as manager:
        manager.save(1, state_of(saved, 3), block=True)
        state, step = manager.restore_latest(abstract)
    assert step == 1 and state.params["logit_scale"] == 3
    assert jax.tree.structure(state) == jax.tree.structure(state_of(not saved, 0))
    if not saved:
        assert state.spike_guard["mean"] == 0 and state.spike_guard["count"] == 0
