"""Optimizers of stages that freeze other parameters: one state, held where a stage trains none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.optim import make_optimizer, make_stage_optimizers
from clipjax.trees import flatten_with_names

NAMES = ("image/kernel", "text/kernel", "head/kernel", "head/bias", "never/kernel")
FROZEN = ({"text/kernel", "never/kernel"}, {"image/kernel", "never/kernel"})
STEPS = (0, 0, 0, 1, 1, 0)  # the stage of each


def tree_of(values):
    tree = {}
    for name, value in zip(NAMES, values, strict=True):
        group, leaf = name.split("/")
        tree.setdefault(group, {})[leaf] = value
    return tree


def parameters(seed):
    keys = jax.random.split(jax.random.key(seed), len(NAMES))
    return tree_of([jax.random.normal(key, (4, 3)) for key in keys])


def optimizers_of(clip_norm=None, **options):
    options = {"schedule": optax.constant_schedule(0.1), "mask": "kernels", **options}
    frozen = [names.__contains__ for names in FROZEN]
    return make_stage_optimizers(parameters(0), frozen, clip_norm=clip_norm, **options)


def gradients(step):
    """As a step gives them: zeros of what its stage holds fixed."""
    named = dict(flatten_with_names(parameters(100 + step)))
    zero = FROZEN[STEPS[step]]
    return tree_of([named[name] * (name not in zero) for name in NAMES])


def trained(txs, steps=range(6)):
    params = parameters(0)
    state = txs[0].init(params)
    for step in steps:
        tx = txs[STEPS[step]]
        updates, state = tx.update(gradients(step), state, params, step=jnp.array(step))
        params = optax.apply_updates(params, updates)
    return dict(flatten_with_names(params)), state


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_each_parameter_goes_as_by_itself_over_the_steps_that_train_it(clip_norm):
    found, _ = trained(optimizers_of(clip_norm))
    plain = make_optimizer(
        {"kernel": 0}, schedule=optax.constant_schedule(0.1), mask="kernels", clip_norm=None
    )
    start = dict(flatten_with_names(parameters(0)))
    for name in NAMES:
        # One that is decayed by its last name, as in the tree.
        param = {name.split("/")[1]: start[name]}
        state = plain.init(param)
        for step, stage in enumerate(STEPS):
            grads = dict(flatten_with_names(gradients(step)))
            norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in grads.values()))
            scale = min(1, clip_norm / norm) if clip_norm else 1
            if name not in FROZEN[stage]:
                grad = {name.split("/")[1]: grads[name] * scale}
                updates, state = plain.update(grad, state, param, step=jnp.array(step))
                param = optax.apply_updates(param, updates)
        np.testing.assert_allclose(found[name], next(iter(param.values())), rtol=2e-6, atol=1e-7)
        is_still = np.array_equal(found[name], start[name])
        assert is_still == (name == "never/kernel")


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_the_state_is_one_and_holds_what_any_stage_trains(name):
    txs = optimizers_of(name=name)
    states = [tx.init(parameters(0)) for tx in txs]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    names = [leaf for leaf, _ in flatten_with_names(states[0])]
    for part in NAMES:
        assert any(part in leaf for leaf in names) == (part != "never/kernel")
    _, before = trained(txs, range(3))
    _, after = trained(txs, range(5))
    before, after = (dict(flatten_with_names(state)) for state in (before, after))
    moved = {leaf for leaf in names if not np.array_equal(before[leaf], after[leaf])}
    for group in ("trained_0/", "trained_1/", "trained_0_1/"):
        assert any(group in leaf for leaf in moved) == (group != "trained_0/")


def test_the_comparison_sees_a_stage_that_holds_nothing():
    """Negative control."""
    held, _ = trained(optimizers_of())
    free = make_stage_optimizers(
        parameters(0),
        [FROZEN[0].__contains__, {"never/kernel"}.__contains__],
        schedule=optax.constant_schedule(0.1),
        mask="kernels",
    )
    moved, _ = trained(free)
    assert not np.array_equal(held["image/kernel"], moved["image/kernel"])
