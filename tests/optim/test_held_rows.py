"""Blocks of a stack that stay as they are: to the bit, under every optimizer, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.optim import hold_rows, make_optimizer, optimizer_report, zero_rows
from clipjax.optim.factory import OPTIMIZERS
from clipjax.trees import flatten_with_names

STACK = "tower/blocks/mlp/kernel"
ROWS = {STACK: np.array([True, False, True])}


def draw(seed):
    keys = jax.random.split(jax.random.key(seed))
    stack, kernel = jax.random.normal(keys[0], (3, 4, 6)), jax.random.normal(keys[1], (4, 3))
    return {"tower": {"blocks": {"mlp": {"kernel": stack}}}, "projection": {"kernel": kernel}}


def run(tx):
    params = draw(0)
    state = tx.init(params)
    for step in range(3):
        grads = zero_rows(draw(1 + step), ROWS)
        updates, state = tx.update(grads, state, params, step=jnp.array(step))
        params = optax.apply_updates(params, updates)
    return dict(flatten_with_names(params)), state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_held_rows_do_not_move_and_the_others_go_as_without(name):
    tx = make_optimizer(draw(0), schedule=optax.constant_schedule(0.1), name=name, mask="all")
    (held, state), (plain, plain_state) = run(hold_rows(tx, ROWS)), run(tx)
    start, rows = dict(flatten_with_names(draw(0))), ROWS[STACK]
    np.testing.assert_array_equal(held[STACK][rows], start[STACK][rows])
    np.testing.assert_array_equal(held[STACK][~rows], plain[STACK][~rows])
    np.testing.assert_array_equal(held["projection/kernel"], plain["projection/kernel"])
    assert jax.tree.all(jax.tree.map(np.array_equal, state, plain_state))
    # Without, they decay although they have no gradient; and what is free has moved.
    assert (plain[STACK][rows] != start[STACK][rows]).all()
    assert (held[STACK][~rows] != start[STACK][~rows]).all()


def test_rows_of_a_block_that_stands_apart():
    tree = {"block_0": jnp.ones((2, 3)), "block_1": jnp.ones((2, 3))}
    zeroed = zero_rows(tree, {"block_1": np.array(True)})
    assert zeroed["block_0"].all() and not zeroed["block_1"].any()
    assert zero_rows(tree, {}) is tree
    tx = make_optimizer(tree, schedule=optax.constant_schedule(0.1))
    assert hold_rows(tx, {}) is tx


def test_the_report_counts_held_rows_as_frozen():
    report = optimizer_report(draw(0), mask="all", weight_decay=0.1, held=ROWS)
    assert report.startswith("parameters: 36 decayed, 48 frozen")
    assert "decayed, 2 of 3 frozen" in report
