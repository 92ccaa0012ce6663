"""Blocks that are frozen by their index, in the run's own step, stacked and apart."""

import jax
import numpy as np
import pytest
from config_files import shipped

from clipjax import partitioning
from clipjax.experiment import build_program, resolve
from clipjax.experiment.freezing import fixed_of
from clipjax.models.layers_layout import unstack_layers
from clipjax.trees import flatten_with_names

BLOCKS = "image_encoder/transformer/blocks"
SHAPES = {f"{BLOCKS}/mlp/kernel": (3, 4, 8), f"{BLOCKS}/ln/scale": (3, 4), "logit_scale": ()}


def test_patterns_name_stacks_and_their_blocks():
    fixed = fixed_of(("/block_[01]/", "logit"), SHAPES)
    assert fixed.names == {"logit_scale"} and not fixed("image_encoder")
    assert fixed.rows[f"{BLOCKS}/mlp/kernel"].tolist() == [True, True, False]
    apart = f"{BLOCKS.removesuffix('blocks')}block_1/ln/scale"
    assert fixed.rows[apart].all() and apart.replace("_1/", "_2/") not in fixed.rows
    # All the blocks of a stack are the stack, by either name and in either layout.
    for pattern in ("/blocks/", "/block_[012]/", "/block_", "transformer"):
        fixed = fixed_of((pattern,), SHAPES)
        assert not fixed.rows and fixed(f"{BLOCKS}/ln/scale") and fixed(apart)
    fixed = fixed_of(("/block_2/mlp/",), SHAPES)
    assert set(fixed.rows) == {f"{BLOCKS}/mlp/kernel", BLOCKS[:-6] + "block_2/mlp/kernel"}
    with pytest.raises(ValueError, match="freeze: '/block_3/' matches no parameter"):
        fixed_of(("/block_3/",), SHAPES)
    assert not fixed_of(("/block_3/",), SHAPES, strict=False).rows


def trained(scan_layers, start=None):
    """Parameters by name before and after two steps, blocks apart, and the gradients' norms."""
    config = shipped("smoke", "batch_size=8,steps=2")
    config.scan_layers, config.remat, config.schedule.warmup_steps = scan_layers, "none", 0
    config.optimizer.freeze = ("^text_", "/block_0/", "^image_encoder/patch", "^logit_scale")
    config.model.text.update(depth=1, vocab_size=64)
    program = build_program(resolve(config, to_run=False), jax.devices()[:1])
    rng, norms = np.random.default_rng(0), []
    with program.scope():
        state = program.create_state(0)
        if start is not None:  # the two layouts draw other numbers
            put = jax.tree.map(
                lambda x, like: jax.device_put(x, like.sharding), start, state.params
            )
            state = state.replace(params=put)
        before = jax.device_get(state.params)
        for _ in range(2):
            image = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
            text = rng.integers(1, 64, (8, 16), dtype=np.int32)
            batch = partitioning.global_batch({"image": image, "text": text}, program.mesh)
            state, metrics = program.stages[-1].step(state, batch)
            norms.append(float(metrics["grad_norm"]))
        after = jax.device_get(state.params)
    summary = program.optimizer_summary
    return before, after, norms, summary


def check_still(before, after):
    before, after = (dict(flatten_with_names(unstack_layers(tree))) for tree in (before, after))
    for name in before:
        frozen = name.startswith(("text_", "image_encoder/patch", "logit")) or "/block_0/" in name
        assert np.array_equal(before[name], after[name]) == frozen, name
    assert sum("/block_1/" in name for name in before) > 8


def test_frozen_blocks_of_a_stack_stay_to_the_bit():
    before, after, _, summary = trained(True)
    check_still(before, after)
    assert "decayed, 1 of 2 frozen" in summary


@pytest.mark.slow
def test_frozen_blocks_are_the_same_in_either_layout():
    before, stacked, norms, _ = trained(True)
    same, apart, others, summary = trained(False, start=before)
    check_still(same, apart)
    assert "/block_0/" in summary and "1 of 2 frozen" not in summary
    np.testing.assert_allclose(norms, others, rtol=1e-4)
    for (name, left), (_, right) in zip(*map(flatten_with_names, (stacked, apart)), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-3, atol=2e-4, err_msg=name)
