"""Decay masks, schedules, the chain, the report."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.models.layers_layout import unstack_layers
from clipjax.optim import DECAY_MASKS, make_optimizer, make_schedule, optimizer_report
from clipjax.trees import flatten_with_names

DECAYED = {
    # name: masks that decay it
    "image_encoder/class_embedding": {"all", "openai"},
    "image_encoder/position_embedding": {"all", "openai", "openclip_legacy"},
    "image_encoder/transformer/blocks/attention/qkv_kernel": {
        "all",
        "kernels",
        "openai",
        "openclip",
        "openclip_legacy",
    },
    "image_encoder/transformer/blocks/attention/qkv_bias": {"all"},
    "image_encoder/transformer/blocks/ln_1/scale": {"all"},
    "image_encoder/transformer/blocks/mlp/fc/bias": {"all"},
    "text_encoder/token_embedding": {"all", "openai", "openclip", "openclip_legacy"},
    "logit_scale": {"all"},
    "logit_bias": {"all"},
}


@pytest.mark.parametrize("name", DECAYED)
def test_masks_decay_what_was_published(name):
    assert {mask for mask, decays in DECAY_MASKS.items() if decays(name)} == DECAYED[name]


def test_schedule_warms_up_and_ends():
    schedule = make_schedule("cosine", learning_rate=1.0, total_steps=110, warmup_steps=10)
    assert float(schedule(0)) == 0.0
    assert float(schedule(5)) == pytest.approx(0.5)
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx(0.5)
    assert float(schedule(110)) == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(ValueError, match="constant, cosine, linear, polynomial, rsqrt"):
        make_schedule("sawtooth", learning_rate=1.0, total_steps=10)


SCHEDULES = {
    # name, options -> rates at the steps below, of 100 with a warm-up of 10 to 2.0
    ("linear", ()): [0.0, 1.0, 2.0, 1.0, 0.4, 0.0],
    ("linear", (("end_fraction", 0.5),)): [0.0, 1.0, 2.0, 1.5, 1.2, 1.0],
    ("polynomial", (("power", 2.0),)): [0.0, 1.0, 2.0, 0.5, 0.08, 0.0],
    ("constant", (("cooldown_steps", 36),)): [0.0, 1.0, 2.0, 2.0, 1.0, 0.0],
    ("constant", (("cooldown_steps", 36), ("power", 2.0))): [0.0, 1.0, 2.0, 2.0, 0.5, 0.0],
    ("constant", (("cooldown_steps", 36), ("end_fraction", 0.5))): [0.0, 1.0, 2.0, 2.0, 1.5, 1.0],
    ("rsqrt", (("timescale_steps", 15),)): [
        0.0, 1.0, 2.0, 2.0 / 2.0, 2.0 / (1 + 72 / 15) ** 0.5, 2.0 / 7**0.5,
    ],
    ("rsqrt", (("timescale_steps", 15), ("cooldown_steps", 36))): [
        0.0, 1.0, 2.0, 2.0 / 2.0, 1.0 / (1 + 72 / 15) ** 0.5, 0.0,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), SCHEDULES)
def test_schedules_are_their_formulas(name, options):
    schedule = make_schedule(
        name, learning_rate=2.0, total_steps=100, warmup_steps=10, **dict(options)
    )
    found = [float(schedule(step)) for step in (0, 5, 10, 55, 82, 100)]
    np.testing.assert_allclose(found, SCHEDULES[name, options], rtol=1e-5, atol=1e-6)


def test_what_has_come_to_its_end_is_not_cooled_down():
    for name in ("cosine", "linear", "polynomial"):
        with pytest.raises(ValueError, match=rf"cooldown_steps = 5, and name = '{name}'"):
            make_schedule(name, learning_rate=1.0, total_steps=10, cooldown_steps=5)


PARAMS = {
    "a": {"kernel": jnp.full((2, 2), 2.0, jnp.float32)},
    "b": {"bias": jnp.full((2,), 2.0, jnp.float32)},
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def apply(step=0, **options):
    options = {"schedule": optax.constant_schedule(0.1), "weight_decay": 0.5, **options}
    tx = make_optimizer(PARAMS, **options)
    state = tx.init(PARAMS)
    updates, state = tx.update(GRADS, state, PARAMS, step=jnp.asarray(step))
    return updates, state


def test_adamw_is_the_formula():
    updates, _ = apply(eps=0.0)
    # After bias correction the first step of Adam is the sign of the gradient.
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1 * (1 + 0.5 * 2.0), rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["bias"], -0.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion"])
@pytest.mark.parametrize("mu_dtype", ["bfloat16", "float32"])
def test_the_first_moment_has_the_dtype_asked_for(name, mu_dtype):
    options = {"schedule": optax.constant_schedule(1.0), "name": name, "mu_dtype": mu_dtype}
    updates, state = apply(**options)
    first = optax.tree.get(state, "mu")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(first)} == {mu_dtype}
    if name == "adamw":
        second = optax.tree.get(state, "nu")
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(second)} == {"float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(updates)} == {"float32"}


def test_the_learning_rate_follows_the_step_of_the_state_and_not_the_count_of_updates():
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    late, _ = apply(step=7, schedule=schedule, weight_decay=0.0, eps=0.0)
    np.testing.assert_allclose(late["b"]["bias"], -0.7, rtol=1e-6)


def test_frozen_parameters_hold_no_state_and_do_not_move():
    updates, state = apply(freeze=("^a/",))
    np.testing.assert_array_equal(updates["a"]["kernel"], 0.0)
    assert float(jnp.abs(updates["b"]["bias"]).min()) > 0
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (2, 2) not in shapes and (2,) in shapes


def test_clipping_is_of_the_global_norm_of_the_trained():
    updates, _ = apply(name="lion", clip_norm=1e-3, weight_decay=0.0)
    np.testing.assert_allclose(np.abs(updates["b"]["bias"]), 0.1, rtol=1e-6)  # lion takes signs
    tx = make_optimizer(PARAMS, schedule=optax.constant_schedule(1.0), clip_norm=1.0)
    clipped, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, step=jnp.asarray(0))
    assert np.isfinite(clipped["a"]["kernel"]).all()


def test_clipped_updates_are_those_of_stable_adamw():
    """Algorithm 2 of arXiv:2304.13013 in NumPy, each block of a stack by itself."""
    b1, b2, eps, rate, decay = 0.9, 0.98, 1e-6, 0.1, 0.5
    params = {"t": {"blocks": {"kernel": jnp.ones((2, 3))}, "kernel": jnp.ones((3, 2))}}
    options = {"schedule": optax.constant_schedule(rate), "weight_decay": decay, "b1": b1, "b2": b2}
    tx = make_optimizer(params, eps=eps, clip_update=True, **options)
    plain = make_optimizer(params, eps=eps, **options)
    state, rng = tx.init(params), np.random.default_rng(0)
    assert jax.tree.structure(state) == jax.tree.structure(plain.init(params))
    tensors = {"block 0": np.ones(3), "block 1": np.ones(3), "kernel": np.ones((3, 2))}
    moments = {name: (np.zeros_like(x), np.zeros_like(x)) for name, x in tensors.items()}
    clipped = 0
    for step in range(1, 8):
        # The second block's gradient grows by a factor that its second moment does not follow.
        grads = {name: rng.normal(size=x.shape) for name, x in tensors.items()}
        grads["block 1"] *= 100.0 if step == 5 else 1.0
        for name, g in grads.items():
            m, v = moments[name]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            moments[name] = (m, v)
            m, v = m / (1 - b1**step), v / (1 - b2**step)
            eta = rate / max(1, np.sqrt(np.mean(g**2 / np.maximum(v, eps**2))))
            clipped += eta < rate / 1.5
            tensors[name] = tensors[name] - eta * (decay * tensors[name] + m / (np.sqrt(v) + eps))
        stack = np.stack([grads["block 0"], grads["block 1"]])
        tree = {"t": {"blocks": {"kernel": stack}, "kernel": grads["kernel"]}}
        tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
        updates, state = tx.update(tree, state, params, step=jnp.asarray(step))
        params = optax.apply_updates(params, updates)
    assert clipped
    wanted = np.stack([tensors["block 0"], tensors["block 1"]])
    np.testing.assert_allclose(params["t"]["blocks"]["kernel"], wanted, rtol=1e-4)
    np.testing.assert_allclose(params["t"]["kernel"], tensors["kernel"], rtol=1e-4)


def test_factors_scale_the_learning_rate_by_the_first_match():
    updates, _ = apply(lr_scale=(("^b/bias", 0.5), ("^b", 0.1)), weight_decay=0.0, eps=0.0)
    np.testing.assert_allclose(updates["b"]["bias"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1, rtol=1e-6)


DEEP = {
    "image_encoder": {
        "patch_kernel": jnp.ones((2, 2)),
        "ln_pre": {"scale": jnp.ones(2)},
        "transformer": {"blocks": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}},
        "ln_post": {"scale": jnp.ones(2)},
    },
    "text_encoder": {
        "token_embedding": jnp.ones((4, 2)),
        "transformer": {"blocks": {"kernel": jnp.ones((2, 2, 2))}},
    },
    "conv_tower": {"kernel": jnp.ones((2, 2))},
    "logit_scale": jnp.ones(()),
}
FACTORS = {
    # 3 blocks at 0.5, 2 at 0.1; the second of the image tower's pairs is not reached.
    "image_encoder/patch_kernel": 0.5**4,
    "image_encoder/ln_pre/scale": 0.5**4,
    "image_encoder/transformer/block_0/kernel": 0.5**3,
    "image_encoder/transformer/block_1/kernel": 0.5**2,
    "image_encoder/transformer/block_2/kernel": 0.5,
    "image_encoder/transformer/block_2/bias": 0.5,
    "image_encoder/ln_post/scale": 1.0,
    "text_encoder/token_embedding": 0.1**3,
    "text_encoder/transformer/block_0/kernel": 0.1**2,
    "text_encoder/transformer/block_1/kernel": 0.1,
    "conv_tower/kernel": 2.0,
    "logit_scale": 1.0,
}


@pytest.mark.parametrize("arrange", [lambda tree: tree, unstack_layers], ids=["stacked", "apart"])
def test_layer_decay_lowers_the_rate_from_block_to_block(arrange):
    params = arrange(DEEP)
    tx = make_optimizer(
        params,
        schedule=optax.constant_schedule(1.0),
        name="lion",  # whose update is a sign
        weight_decay=0.0,
        layer_decay=(("^image_encoder/", 0.5), ("_encoder/", 0.1)),
        lr_scale=(("^conv_tower/", 2.0),),
    )
    updates, _ = tx.update(params, tx.init(params), params, step=jnp.asarray(0))
    found = dict(flatten_with_names(unstack_layers(updates)))
    for name, factor in FACTORS.items():
        np.testing.assert_allclose(found[name], -factor, rtol=1e-6, err_msg=name)
    report = optimizer_report(
        params, mask="all", weight_decay=0.1, layer_decay=(("^image_encoder/", 0.5),)
    )
    lines = {line.split()[0]: line for line in report.splitlines()[1:]}
    stacked = lines.get("image_encoder/transformer/blocks/kernel", "lr x 0.125..0.5")
    assert stacked.endswith("lr x 0.125..0.5")
    assert lines["image_encoder/patch_kernel"].endswith("lr x 0.0625")


def test_layer_decay_of_what_has_no_blocks_is_an_error():
    with pytest.raises(ValueError, match=r"layer_decay: '\^conv_tower/' matches no block"):
        make_optimizer(
            DEEP, schedule=optax.constant_schedule(1.0), layer_decay=(("^conv_tower/", 0.5),)
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "adam"}, "adamw, lamb, lion, muon, stableadamw"),
        ({"mask": "some"}, "openclip_legacy"),
        ({"name": "lion", "clip_update": True}, "of name = 'adamw'"),
        ({"freeze": ("^c/",)}, r"freeze.*\^c/.*matches no parameter"),
        ({"freeze": ("(",)}, "no regular expression"),
        ({"lr_scale": (("^c/", 0.1),)}, "lr_scale"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        apply(**options)


def test_the_report_says_who_is_decayed_frozen_and_scaled():
    report = optimizer_report(
        PARAMS, mask="openai", weight_decay=0.1, freeze=("^a/",), lr_scale=(("^b/", 0.5),)
    )
    assert "4 frozen" in report and "2 not decayed" in report
    lines = {line.split()[0]: line for line in report.splitlines()[1:]}
    assert lines["a/kernel"].endswith("frozen")
    assert lines["b/bias"].endswith("lr x 0.5")
    assert "4 decayed" in optimizer_report(PARAMS, mask="openai", weight_decay=0.1)
    assert "6 not decayed" in optimizer_report(PARAMS, mask="openai", weight_decay=0.0)
