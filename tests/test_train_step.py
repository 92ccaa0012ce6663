"""The step: the same curve under every sharding, exact micro-batches, the finite vote."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from clipjax import partitioning
from clipjax.config import default_config
from clipjax.encoding.encode_fns import make_encode_fns
from clipjax.experiment import build_program, resolve
from clipjax.losses import make_loss
from clipjax.plan.compiling import compile_step
from clipjax.plan.flops import count_flops
from clipjax.plan.hlo import parse, walk
from clipjax.train_state import create_train_state
from clipjax.train_step import make_train_step
from clipjax.trees import flatten_with_names

STEPS = 10
LAYOUTS = {
    "replicated": {"sharding": "replicated", "mesh.data": 8},
    "zero1": {"sharding": "zero1", "mesh.data": 8},
    "fsdp": {"sharding": "fsdp", "mesh.data": 2, "mesh.fsdp": 4},
    "tensor": {"sharding": "tensor", "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
    "fsdp in micro-batches": {
        "sharding": "fsdp",
        "mesh.data": 2,
        "mesh.fsdp": 2,
        "micro_batch_size": 4,
    },
}
# Of how many devices each holds its part: of a kernel, and of its moment.
PARTS = {"replicated": (1, 1), "zero1": (1, 8), "fsdp": (4, 4), "tensor": (2, 8)}
PARTS["fsdp in micro-batches"] = (2, 2)


def tiny_config(**changes):
    config = default_config()
    tower = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "dropout": 0.1}
    tower |= {"activation": "gelu", "layer_norm_eps": 1e-5}
    config.model = ConfigDict(
        {
            "name": "tiny",
            "embed_dim": 16,
            "image_size": 16,
            "image": {
                "name": "vit",
                "patch_size": 4,
                "pooling": "cls",
                "patch_dropout": 0.25,
                **tower,
            },
            "text": {
                "name": "causal_transformer",
                "vocab_size": 64,
                "context_length": 6,
                "pooling": "eot",
                **tower,
            },
            "tokenizer": {"name": "clip_bpe"},
            "preprocess": {
                "resize": "shortest",
                "interpolation": "bicubic",
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "logit_scale": {"init": 1 / 0.07, "max": 100.0},
        }
    )
    config.data.source = "synthetic:8"
    config.batch_size, config.total_steps, config.dtype = 16, 100, "float32"
    config.optimizer.learning_rate, config.schedule.warmup_steps = 1e-3, 5
    config.optimizer.clip_norm = 1.0
    config.remat = "none"
    config.update_from_flattened_dict(changes)
    return config


def small_config(**changes):
    """A config without noise, of what compiles fastest."""
    config = tiny_config(**changes)
    config.model.image.dropout = config.model.text.dropout = 0.0
    config.model.image.patch_dropout = 0.0
    config.model.image.depth = config.model.text.depth = 1
    config.scan_layers = False
    return config


def jittered_config(fields=None, **changes):
    """Colour jitter on the device, and nothing else that draws."""
    config = small_config(**changes)
    config.data.device_color_jitter = {} if fields is None else fields
    return config


def make_batch(step=0, size=16):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
        "text": rng.integers(0, 64, (size, 6), dtype=np.int32),
    }


def build(config, num_devices=1):
    with jax.default_matmul_precision("highest"):
        return build_program(resolve(config), jax.devices()[:num_devices])


def run(program, steps, batches=make_batch, step_fn=None):
    losses = []
    with program.scope(), jax.default_matmul_precision("highest"):
        state = program.create_state(0)
        for step in range(steps):
            batch = partitioning.global_batch(batches(step), program.mesh)
            state, metrics = (step_fn or program.stages[-1].step)(state, batch)
            losses.append(float(metrics["loss"]))
    return state, losses


def compiled_step(program):
    with program.scope(), jax.default_matmul_precision("highest"):
        return (
            program.stages[-1]
            .step.lower(program.abstract_state, program.batch_of(program.stages[-1]))
            .compile()
        )


def rolled(step):
    """The same pairs in other rows of the batch, so that they have other ids."""
    return {name: np.roll(rows, 3, 0) for name, rows in make_batch(step).items()}


def assert_same_gradients(states, rtol):
    """The first moments after one step are the gradients, times 0.1: no sign of Adam's hides any"""
    moments = (jax.device_get(optax.tree.get(s.opt_state, "mu")) for s in states)
    for a, b in zip(*map(jax.tree.leaves, moments), strict=True):
        assert np.abs(a - b).max() <= rtol * max(np.abs(a).max(), 1e-6)


def drawing_config(**changes):
    """A config of both kinds of dropout that compiles in half of the time: without scans."""
    config = tiny_config(**changes)
    config.model.image.depth = config.model.text.depth = 1
    config.scan_layers = False
    return config


@pytest.fixture(scope="module")
def single_program():
    return build(drawing_config())


@pytest.fixture(scope="module")
def single(single_program):
    return run(single_program, STEPS)


# fsdp cuts the parameters and the optimizer's state; what each table moves, test_collectives says.
@pytest.mark.parametrize(
    "name",
    [
        name if "micro-batches" in name else pytest.param(name, marks=pytest.mark.slow)
        for name in LAYOUTS
    ],
)
def test_every_sharding_trains_the_same_curve(single_program, single, name):
    """With dropout and patch dropout."""
    changes = LAYOUTS[name]
    num_devices = math.prod(n for field, n in changes.items() if field.startswith("mesh."))
    program = build(drawing_config(**changes), num_devices)
    compiled = compiled_step(program)
    state, losses = run(program, STEPS, step_fn=compiled)
    np.testing.assert_allclose(losses, single[1], rtol=1e-5)
    firsts = (run(single_program, 1)[0], run(program, 1, step_fn=compiled)[0])
    assert_same_gradients(firsts, 1e-5)
    text = compiled.as_text()
    assert "all-reduce" in text or "reduce-scatter" in text, "gradients are summed over devices"
    kernel = state.params["image_encoder"]["transformer"]["blocks"]["mlp"]["fc"]["kernel"]
    moment = jax.tree.leaves(
        state.opt_state, is_leaf=lambda x: getattr(x, "shape", None) == kernel.shape
    )
    moment = next(m for m in moment if m.shape == kernel.shape)
    for array, number in zip((kernel, moment), PARTS[name], strict=True):
        assert array.size // array.addressable_shards[0].data.size == number
    if changes["sharding"] in ("zero1", "fsdp"):
        assert "all-gather" in text, "sharded values are gathered before use"


@pytest.mark.slow
def test_two_slices_train_as_one_device(single, monkeypatch):
    """Two times four devices, FSDP inside of a slice; the slices lie across the devices' order."""
    slices = [[*jax.devices()[which::2]] for which in range(2)]
    monkeypatch.setattr(partitioning.mesh, "slices_of", lambda devices: slices)
    program = build(drawing_config(**LAYOUTS["fsdp"]), 8)
    assert [*program.mesh.devices[0].flat] == slices[0]
    np.testing.assert_allclose(run(program, STEPS)[1], single[1], rtol=1e-5)


def test_the_curve_sees_other_draws(single_program, single):
    """Negative control: in other rows, the same pairs draw another dropout, and so another loss."""
    _, (loss,) = run(single_program, 1, rolled)
    assert not np.allclose(loss, single[1][0], rtol=1e-4)


@pytest.mark.slow
def test_the_curve_sees_another_seed(single):
    _, losses = run(build(drawing_config(seed=1)), 3)
    assert not np.allclose(losses, single[1][:3], rtol=1e-4)


@pytest.mark.slow  # a sharding above is in micro-batches, too
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_micro_batches_are_exact_with_dropout_and_patch_drop(loss):
    changes = {"loss.name": loss, "schedule.warmup_steps": 1}
    config = tiny_config(**changes)
    config.model.logit_bias = -3.0 if loss == "siglip" else None
    whole_state, whole = run(build(config), 3)
    config.micro_batch_size = 2
    micro_state, micro = run(build(config), 3)
    np.testing.assert_allclose(micro, whole, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(whole_state.params), jax.tree.leaves(micro_state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow  # a sharding above is in micro-batches, too
def test_micro_batches_of_zero1_are_the_batch_on_one_device(single_program):
    """With dropout and patch dropout."""
    whole, (expected,) = run(single_program, 1)
    changes = {"sharding": "zero1", "micro_batch_size": 4, "mesh.data": 4}
    micro, (loss,) = run(build(drawing_config(**changes), 4), 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_same_gradients((whole, micro), 1e-5)


def planned(batch_size, **changes):
    """Temporaries, and FLOPs by part, of a step compiled for one device."""
    program = build(tiny_config(batch_size=batch_size, **changes))
    compiled = compile_step(program, program.stages[0])
    return compiled.memory.temporaries, count_flops(walk(parse(compiled.text)))


@pytest.fixture(scope="module")
def one_micro_batch():
    return planned(32)


@pytest.mark.slow
def test_micro_batches_cost_one_more_forward_and_the_memory_of_one(one_micro_batch):
    memory, flops = planned(256)
    micro_memory, micro_flops = planned(256, micro_batch_size=32)
    assert 1.30 < micro_flops.total / flops.total < 1.37
    assert micro_flops.by_part["backward"] == flops.by_part["backward"]
    embeddings = 2 * 256 * 16 * 4
    assert micro_memory <= 1.15 * one_micro_batch[0] + embeddings
    assert micro_memory < memory / 4


@pytest.mark.slow
def test_a_step_recomputes_what_its_remat_policy_says(one_micro_batch):
    steps = [one_micro_batch, planned(32, remat="dots"), planned(32, remat="full")]
    none, dots, full = (flops.by_part["recomputed"] for _, flops in steps)
    assert none == 0 < dots < full
    memory = [temporaries for temporaries, _ in steps]
    assert memory == sorted(memory, reverse=True)


@pytest.mark.slow
def test_gradients_of_micro_batches_equal_those_of_the_batch():
    from clipjax.grad_cache import value_and_grad

    config = small_config()
    config.model.image.patch_dropout, config.model.text.dropout = 0.25, 0.1
    config.model.logit_bias = -3.0
    program = build(config)
    loss_fn = make_loss("siglip", layout="dense")
    params = program.create_state(0).params
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}
    batch["example_ids"] = jnp.arange(16)

    def encode(p, micro):
        out = program.stages[-1].model.apply(
            {"params": p},
            micro["image"].astype(jnp.float32) / 255,
            micro["text"],
            train=True,
            example_ids=micro["example_ids"],
            rngs={"dropout": jax.random.key(5)},
        )
        return out.image_embeds, out.text_embeds

    def head(p, images, texts):
        return loss_fn(images, texts, p["logit_scale"], p["logit_bias"])

    with jax.default_matmul_precision("highest"):
        grad = jax.jit(value_and_grad, static_argnums=(0, 1), static_argnames="num_micro")
        (one, _), g_one = grad(encode, head, params, batch, num_micro=1)
        (many, _), g_many = grad(encode, head, params, batch, num_micro=8)
    np.testing.assert_allclose(many, one, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(g_one), jax.tree.leaves(g_many), strict=True):
        scale = max(float(jnp.abs(a).max()), 1e-6)
        assert float(jnp.abs(a - b).max()) / scale < 1e-5

    # Negative control: draws by place in the micro-batch, not by example, are another gradient.
    def by_place(p, micro):
        ids = jnp.arange(micro["text"].shape[0])
        return encode(p, {**micro, "example_ids": ids})

    with jax.default_matmul_precision("highest"):
        _, g_wrong = grad(by_place, head, params, batch, num_micro=8)
    kernel = "image_projection"
    assert not np.allclose(g_wrong[kernel]["kernel"], g_one[kernel]["kernel"], rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def plain_program():
    return build(small_config())


@pytest.fixture(scope="module")
def jittered_program():
    return build(jittered_config())


@pytest.mark.slow  # tests/layers/test_color_jitter.py has the layer's draws
def test_colour_jitter_draws_by_example_and_step(plain_program, jittered_program):
    _, plain = run(plain_program, 2)
    _, jittered = run(jittered_program, 2)
    assert np.abs(np.subtract(jittered, plain)).max() > 1e-3
    # Without jitter the loss does not know the order of the pairs; with it their ids are others.
    _, plain_rolled = run(plain_program, 1, rolled)
    _, jittered_rolled = run(jittered_program, 1, rolled)
    np.testing.assert_allclose(plain_rolled, plain[:1], rtol=1e-5)
    assert abs(jittered_rolled[0] - jittered[0]) > 1e-4


@pytest.mark.slow  # tests/layers/test_color_jitter.py: strength zero changes no bit
def test_colour_jitter_of_no_strength_is_none(plain_program):
    nothing = dict.fromkeys(("hue", "gain", "channel_gain", "offset"), 0.0)
    nothing["saturation"] = (1.0, 1.0)
    plain_state, plain = run(plain_program, 2)
    state, losses = run(build(jittered_config(nothing)), 2)
    np.testing.assert_allclose(losses, plain, rtol=1e-6)
    for a, b in zip(*(jax.tree.leaves(s.params) for s in (plain_state, state)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_devices", "changes"),
    [(1, {"micro_batch_size": 2}), (8, {"mesh.data": 8})],
    ids=["8 micro-batches", "8 devices"],
)
def test_colour_jitter_does_not_know_where_an_example_lands(jittered_program, num_devices, changes):
    whole, expected = run(jittered_program, 2)
    parts, losses = run(build(jittered_config(**changes), num_devices), 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_same_gradients((whole, parts), 1e-4)


def test_evaluations_do_not_jitter(plain_program, jittered_program):
    images, params = make_batch()["image"], plain_program.abstract_state.params
    found = []
    for program in (plain_program, jittered_program):
        encode = make_encode_fns(program.stages[-1].model, program.spec["preprocess"])
        found.append(jax.jit(encode.image).lower({"params": params}, images).as_text())
    assert found[0] == found[1] and "stablehlo" in found[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hew": 3}, ["device_color_jitter.hew", "hue, saturation", "Did you mean 'hue'"]),
        ({"name": "color_jitter"}, ["device_color_jitter.name", "hue, saturation"]),
        ({"hue": -1.0}, ["config.data.device_color_jitter.hue = -1", "[0, 1e+06]"]),
        ({"saturation": (2.0, 1.0)}, ["device_color_jitter", "saturation", "a <= b"]),
        (12.0, ["device_color_jitter = 12.0", "a dict", "`color_jitter`", "None (off)"]),
    ],
)
def test_fields_of_colour_jitter_are_checked(fields, words):
    with pytest.raises(ValueError) as error:
        build(jittered_config(fields))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["color_jitter", "clipjax.data.transforms:ColorJitter"])
def test_colours_are_not_jittered_twice(name):
    config = jittered_config()
    config.data.transforms = ({"name": "random_flip"}, {"name": name})
    words = r"config\.data\.transforms\[1\].*config\.data\.device_color_jitter.*twice"
    with pytest.raises(ValueError, match=words):
        build(config)


def test_colours_of_the_devices_are_not_laid_on_grey_of_the_host():
    config = jittered_config({"grayscale": 0.2})
    assert resolve(config).color_jitter.grayscale == 0.2
    config.data.transforms = ({"name": "random_grayscale"},)
    with pytest.raises(ValueError, match=r"transforms\[0\].*device_color_jitter\.grayscale"):
        resolve(config)


def test_colour_jitter_of_patches_is_refused():
    config = jittered_config()
    config.model.preprocess.resize = "patches"
    config.model.preprocess.max_patches = 4
    config.model.image.name = "naflex_vit"
    with pytest.raises(ValueError, match=r"config\.data\.device_color_jitter.*on the host"):
        build(config)


@pytest.fixture(scope="module")
def hot_program():
    """One step of it would leave the range of the temperature."""
    changes = {"optimizer.ema_decay": 0.9, "optimizer.learning_rate": 50.0}
    return build(small_config(**changes, **{"schedule.warmup_steps": 0}))


def test_a_step_that_is_not_finite_is_skipped_and_counted(hot_program):
    program = hot_program
    with program.scope(), jax.default_matmul_precision("highest"):  # as `run`: compiled once
        state = program.create_state(0)
        bad_params = dict(state.params, logit_scale=jnp.float32(jnp.nan))
        state = state.replace(params=bad_params)
        before = jax.device_get(state)
        batch = partitioning.global_batch(make_batch(), program.mesh)
        state, metrics = program.stages[-1].step(state, batch)
        assert int(state.step) == 1
        assert float(metrics["skipped"]) == 1 and float(metrics["skipped_in_a_row"]) == 1
        for name in ("params", "opt_state", "ema_params"):
            old, new = getattr(before, name), jax.device_get(getattr(state, name))
            jax.tree.map(np.testing.assert_array_equal, old, new)
        healed = dict(state.params, logit_scale=jnp.float32(2.0))
        state, metrics = program.stages[-1].step(state.replace(params=healed), batch)
        assert float(metrics["skipped"]) == 1 and float(metrics["skipped_in_a_row"]) == 0
        assert int(state.step) == 2


def test_an_update_that_is_not_finite_is_skipped_though_the_gradient_is(hot_program):
    """As of a moment, or of a rate, that is NaN."""
    program = hot_program
    with program.scope(), jax.default_matmul_precision("highest"):
        state = program.create_state(0)
        spoilt = jax.tree_util.tree_map_with_path(
            lambda path, x: x * jnp.nan if {".mu", "['logit_scale']"} <= set(map(str, path)) else x,
            state.opt_state,
        )
        before = jax.device_get(state)
        batch = partitioning.global_batch(make_batch(), program.mesh)
        state, metrics = program.stages[-1].step(state.replace(opt_state=spoilt), batch)
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert float(metrics["skipped"]) == 1 and int(state.step) == 1
    for name in ("params", "ema_params"):
        old, new = getattr(before, name), jax.device_get(getattr(state, name))
        jax.tree.map(np.testing.assert_array_equal, old, new)


def test_the_temperature_is_clamped_after_the_step(hot_program):
    state, losses = run(hot_program, 4)
    assert np.isfinite(losses).all()
    assert 0.0 <= float(state.params["logit_scale"]) <= np.log(100.0) + 1e-6


def test_a_batch_whose_texts_are_padding_alone_is_no_lost_step(plain_program):
    """The other corner cases: row N3 of tests/faults."""

    def padding(step):
        return {**make_batch(step), "text": np.zeros((16, 6), np.int32)}

    state, losses = run(plain_program, 2, padding)
    assert np.isfinite(losses).all() and int(state.skipped) == 0


@pytest.fixture(scope="module")
def bfloat16_run():
    return run(build(small_config(dtype="bfloat16")), 2)


def test_bfloat16_keeps_float32_parameters_and_loss(plain_program, bfloat16_run):
    state, losses = bfloat16_run
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assert np.isfinite(losses).all()
    _, exact = run(plain_program, 2)
    np.testing.assert_allclose(losses, exact, rtol=2e-2)


@pytest.mark.parametrize("projection", ["linear", "none"])
def test_a_locked_image_tower_with_and_without_a_projection(projection):
    config = small_config()
    config.model.image_projection = projection
    config.init.checkpoint, config.init.lock_image = "runs/any", True
    resolved = resolve(config, to_run=False)  # no checkpoint is there
    report = build_program(resolved, jax.devices()[:1]).optimizer_summary
    states = {line.split()[0]: line for line in report.splitlines()[1:]}
    for name, line in states.items():
        assert line.endswith("frozen") is name.startswith("image"), line
    assert ("image_projection/kernel" in states) is (projection == "linear")


def linear_apply(variables, images, tokens, **_):
    """A model of one's own: a function, and no module."""
    params = variables["params"]
    rows = images.reshape(len(images), -1) @ params["image"], params["text"][tokens].mean(axis=1)
    unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rows]
    return *unit, params["logit_scale"], None


def linear_problem():
    """Variables of `linear_apply`, and a batch."""
    rng = np.random.default_rng(0)
    params = {"image": rng.normal(size=(12, 4)), "text": rng.normal(size=(9, 4))}
    params = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    images = jnp.asarray(rng.normal(size=(8, 2, 2, 3)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 9, (8, 3)), jnp.int32)
    return {"params": {**params, "logit_scale": jnp.float32(2.0)}}, {
        "image": images,
        "text": tokens,
    }


@pytest.mark.parametrize("num_micro_batches", [1, 4])
def test_a_step_of_a_function_is_one_of_plain_jax(num_micro_batches):
    variables, batch = linear_problem()
    tx, loss_fn = optax.adamw(1e-2), make_loss("clip", layout="dense")

    def loss_of(params):
        return loss_fn(*linear_apply({"params": params}, batch["image"], batch["text"]))[0]

    params, opt_state = variables["params"], tx.init(variables["params"])
    loss, grads = jax.jit(jax.value_and_grad(loss_of))(params)
    updates, _ = tx.update(grads, opt_state, params)
    expected = optax.apply_updates(params, updates)

    step = make_train_step(linear_apply, loss_fn, tx, num_micro_batches=num_micro_batches)
    state, metrics = jax.jit(step)(create_train_state(variables, tx), batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(state.params[name], value, atol=1e-6, err_msg=name)
    assert not np.allclose(state.params["image"], params["image"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"image_mean": (123.0, 116.0, 103.0), "image_std": (0.2,) * 3},
            "pixels in .0, 1.; divide",
        ),
        ({"image_mean": (0.5,) * 3, "image_std": (0.0, 0.2, 0.2)}, "above 0"),
        ({"max_logit_scale": 0.0}, "at least 1, or None"),
        ({"num_micro_batches": 0}, "at least 1"),
    ],
)
def test_numbers_of_a_step_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        make_train_step(linear_apply, make_loss("clip"), optax.sgd(0.1), **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": None}, "found text"),
        ({"text": jnp.zeros((8, 3))}, "float32: token ids are int32"),
        ({"text": jnp.zeros((4, 3), jnp.int32)}, "has 8 rows, .* 4"),
        ({"image": jnp.zeros((8, 3, 2, 2), jnp.uint8)}, r"\(8, 3, 2, 2\), expected \[b, H, W, 3\]"),
    ],
)
def test_batches_of_a_step_are_checked(changes, words):
    variables, batch = linear_problem()
    tx, pixels = optax.sgd(0.1), {"image_mean": (0.5,) * 3, "image_std": (0.2,) * 3}
    step = make_train_step(linear_apply, make_loss("clip"), tx, **pixels)
    batch = {key: x for key, x in {**batch, **changes}.items() if x is not None}
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(step, create_train_state(variables, tx), batch)


def test_what_a_step_cannot_do_is_said():
    variables, batch = linear_problem()
    tx, loss_fn = optax.sgd(0.1), make_loss("clip")
    with pytest.raises(ValueError, match="give both, or neither"):
        make_train_step(linear_apply, loss_fn, tx, image_mean=(0.5,) * 3)
    state, step = create_train_state(variables, tx), make_train_step(linear_apply, loss_fn, tx)
    with pytest.raises(ValueError, match="holds integers: give image_mean and image_std"):
        jax.eval_shape(step, state, {**batch, "image": batch["image"].astype(jnp.uint8)})
    cut = make_train_step(linear_apply, loss_fn, tx, num_micro_batches=3)
    with pytest.raises(ValueError, match="batch of 8 does not divide into num_micro_batches = 3"):
        jax.eval_shape(cut, state, batch)
    params = {**variables["params"], "scale": jnp.float32(2.0)}
    del params["logit_scale"]
    step = make_train_step(
        lambda v, *a, **k: linear_apply(
            {"params": {**v["params"], "logit_scale": v["params"]["scale"]}}, *a, **k
        ),
        loss_fn,
        tx,
    )
    with pytest.raises(ValueError, match=r"image, scale, text: name the scale so, or.*=None"):
        jax.eval_shape(step, create_train_state({"params": params}, tx), batch)
    with pytest.raises(ValueError, match="variables holds image"):
        create_train_state(variables["params"], tx)


class Even:
    """An objective without parameters: the loss of pairs of the even examples."""

    needs: tuple = ()

    def __call__(self, outputs, batch, rng):
        rows = [x[::2] for x in (outputs.image_embeds, outputs.text_embeds)]
        loss, metrics = make_loss("clip")(*rows, outputs.logit_scale)
        return loss, {**metrics, "draw": jax.random.uniform(rng), "rows": batch["text"].shape[0]}


def test_an_objective_in_place_of_the_loss():
    variables, batch = linear_problem()
    tx, objective = optax.sgd(0.1), Even()
    step = jax.jit(make_train_step(linear_apply, objective, tx))
    state, metrics = step(create_train_state(variables, tx), batch)
    outputs = jax.jit(linear_apply)(variables, batch["image"], batch["text"])
    expected, _ = jax.jit(make_loss("clip"))(outputs[0][::2], outputs[1][::2], outputs[2])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert metrics["rows"] == 8 and step(state, batch)[1]["draw"] != metrics["draw"]
    objective.needs = ("text_tokens",)
    with pytest.raises(ValueError, match=r"Even needs 'text_tokens', and apply_fn.*gave none"):
        jax.eval_shape(make_train_step(linear_apply, objective, tx), state, batch)


def tokens_apply(variables, images, tokens, *, with_tokens=(), **_):
    """`linear_apply` as a model that has tokens to give."""
    output = linear_apply(variables, images, tokens)
    if "text_tokens" not in with_tokens:
        return output
    return *output, None, variables["params"]["text"][tokens]


TEACHER = np.arange(12, dtype=np.float32).reshape(4, 3) / 10


class Student(nn.Module):
    """A flax module as an objective: parameters, a frozen teacher of a file, a count."""

    needs = ("text_tokens",)

    @nn.compact
    def __call__(self, outputs, batch, rng):
        calls = self.variable("counts", "calls", lambda: jnp.zeros((), jnp.int32))
        teacher = self.variable("teacher", "kernel", jnp.zeros, TEACHER.shape)
        calls.value += 0 if self.is_initializing() else 1
        student = nn.Dense(3, name="student")(outputs.text_tokens.mean(axis=1))
        distance = jnp.mean((student - outputs.text_embeds @ teacher.value) ** 2)
        return make_loss("clip")(*outputs[:3])[0] + distance, {"distance": distance}

    def load_collections(self):
        return {"teacher": {"kernel": TEACHER}}


def test_a_module_as_objective_is_a_loop_of_plain_jax():
    variables, batch = linear_problem()
    tx, objective = optax.adamw(1e-2), Student()
    with_it = {"objective": objective, "apply_fn": tokens_apply, "batch": batch}
    state = create_train_state(variables, tx, **with_it)
    step = jax.jit(make_train_step(tokens_apply, objective, tx))

    @jax.jit
    def update(params, opt_state):
        def loss_of(params):
            image, text, scale, _ = linear_apply({"params": params}, batch["image"], batch["text"])
            dense = params["objective"]["student"]
            student = params["text"][batch["text"]].mean(axis=1) @ dense["kernel"] + dense["bias"]
            distance = jnp.mean((student - text @ TEACHER) ** 2)
            return make_loss("clip")(image, text, scale)[0] + distance

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    start = params = state.params
    opt_state = tx.init(params)
    for _ in range(3):
        state, metrics = step(state, batch)
        params, opt_state, loss = update(params, opt_state)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, params)
    assert state.model_state["counts"]["objective"]["calls"] == 3
    np.testing.assert_array_equal(state.model_state["teacher"]["objective"]["kernel"], TEACHER)
    kernels = [tree["objective"]["student"]["kernel"] for tree in (start, params)]
    assert kernels[0].shape == (4, 3) and not np.allclose(*kernels, atol=1e-6)
    # Traced, and from shapes, it is of the same shapes; variables that are there already stay.
    shapes = with_it | {"batch": jax.eval_shape(lambda: batch)}
    traced = jax.eval_shape(lambda v: create_train_state(v, tx, **shapes), variables)
    assert jax.tree.map(jnp.shape, traced) == jax.tree.map(jnp.shape, state)
    again = create_train_state({"params": start}, tx, objective=objective)
    assert again.params["objective"]["student"]["kernel"] is kernels[0]


def test_an_objective_without_its_variables_is_told_how_to_get_them():
    variables, batch = linear_problem()
    tx, objective = optax.sgd(0.1), Student()
    with pytest.raises(ValueError, match=r"Student is a flax module.* apply_fn=.*and batch="):
        create_train_state(variables, tx, objective=objective)
    with pytest.raises(ValueError, match=r"Student needs 'text_tokens', and apply_fn.*gave none"):
        create_train_state(variables, tx, objective=objective, apply_fn=linear_apply, batch=batch)
    state = create_train_state(variables, tx, objective=Even())  # which has none
    with pytest.raises(ValueError, match=r"Student has variables \(.*create_train_state\(variab"):
        jax.eval_shape(make_train_step(tokens_apply, objective, tx), state, batch)


def without_copies(monkeypatch, config):
    """The program whose model casts its weights at every use."""
    with monkeypatch.context() as patch:
        patch.setattr("clipjax.experiment.program.casts_of", lambda spec: lambda name: False)
        return build(config)


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"micro_batch_size": 4}, marks=pytest.mark.slow)], ids=str
)
def test_weights_that_are_cast_once_are_the_same_weights(monkeypatch, bfloat16_run, changes):
    config = small_config(dtype="bfloat16", **changes)
    state, losses = run(build(config), 2) if changes else bfloat16_run
    plain_state, plain = run(without_copies(monkeypatch, config), 2)
    assert losses == plain
    assert_same_gradients((state, plain_state), 1e-6)


def test_a_step_casts_each_weight_once(monkeypatch):
    config = tiny_config(dtype="bfloat16", remat="dots", batch_size=8)
    kernels = [
        "x".join(map(str, leaf.shape))
        for name, leaf in flatten_with_names(build(config).abstract_state.params)
        if name.endswith("kernel")
    ]
    counts = []
    for program in (build(config), without_copies(monkeypatch, config)):
        with program.scope():
            text = program.step.lower(program.abstract_state, program.abstract_batch).as_text()
        casts = re.findall(r"convert .*tensor<([\dx]+)xf32>\) -> tensor<[\dx]+xbf16>", text)
        # In a scan the model by itself casts the slice of its block, forward and recomputing.
        stacked = {kernel.split("x", 1)[1] for kernel in kernels if kernel.startswith("2x")}
        counts.append([sum(casts.count(shape) for shape in set(of)) for of in (kernels, stacked)])
    assert counts[0] == [len(kernels), 0]
    assert counts[1][0] < len(kernels) and counts[1][1] > len(stacked), "the model casts by itself"
