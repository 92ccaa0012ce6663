"""The modified ResNet against open_clip, and its batch statistics against the global batch's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeded
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from open_clip_golden import load, relative_error
from open_clip_names import convert
from tiny import filled, inputs, tiny_spec

from clipjax.config import default_config, to_plain
from clipjax.layers.batch_norm import BatchNorm
from clipjax.layers.execution import Execution
from clipjax.losses import clip_loss, make_loss
from clipjax.models import build_model, resolve_spec
from clipjax.models.images import normalise_images
from clipjax.models.modified_resnet import ModifiedResNet
from clipjax.train_state import create_train_state
from clipjax.train_step import make_train_step
from clipjax.trees import flatten_with_names


@pytest.fixture(scope="module")
def problem():
    """(golden, wanted gradients, spec, variables, images, tokens)"""
    spec, golden, params, want, images, tokens = load("resnet")
    prefix = "statistics/"
    names = [name.removeprefix(prefix) for name in golden if name.startswith(prefix)]
    running = {name: seeded.weight(name, golden[prefix + name].shape) for name in names}
    variables = {"params": params, "batch_stats": convert(running, spec)}
    return golden, want, spec, jax.tree.map(jnp.asarray, variables), images, tokens


def test_evaluation_uses_the_running_statistics(problem):
    golden, _, spec, variables, images, tokens = problem
    model = build_model(spec)

    def run(variables):
        features = model.apply(variables, images, keep_hidden=True, method="image_features")
        return model.apply(variables, images, tokens), features

    out, features = jax.jit(run)(variables)
    assert np.abs(out.image_embeds - golden["image_embeds"]).max() <= 5e-6
    assert np.abs(out.text_embeds - golden["text_embeds"]).max() <= 2e-6
    for i, stage in enumerate(features.hidden):
        wanted = golden[f"image_hidden/{i}"].transpose(0, 2, 3, 1)
        assert np.abs(stage - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())
    # Those of training are others.
    assert np.abs(out.image_embeds - golden["train_image_embeds"]).max() > 1e-2


@pytest.mark.slow
def test_training_step(problem):
    golden, want, spec, variables, images, tokens = problem
    model = build_model(spec)

    def run(params):
        out, state = model.apply(
            {**variables, "params": params}, images, tokens, train=True, mutable=["batch_stats"]
        )
        loss = clip_loss(out.image_embeds, out.text_embeds, out.logit_scale)
        return loss, (out.image_embeds, state["batch_stats"])

    (loss, (embeds, statistics)), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(
        variables["params"]
    )
    assert np.abs(embeds - golden["train_image_embeds"]).max() <= 5e-6
    assert abs(loss - golden["train_loss"]) <= 1e-5
    errors = jax.tree.map(relative_error, jax.device_get(gradient), want)
    assert {name: float(e) for name, e in flatten_with_names(errors) if not e <= 1e-4} == {}
    prefix = "statistics/"
    after = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    after = convert(after, spec)
    jax.tree.map(lambda f, w: np.testing.assert_allclose(f, w, atol=1e-5), statistics, after)


@pytest.mark.slow
def test_a_fresh_bottleneck_is_its_shortcut():
    fields = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "num_heads": 4}
    model = ModifiedResNet(**fields, output_dim=8)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))["params"]
    scales = {n: x for n, x in flatten_with_names(params) if re.search(r"/bn\d/scale$", n)}
    assert len(scales) == 3 * 4  # the stem's are not in a block
    for name, scale in scales.items():
        assert (scale == (0 if "/bn3/" in name else 1)).all(), name
    pool = params["attention_pool"]
    kernel = pool["attention"]["q_kernel"]
    assert abs(kernel.std() * 256**0.5 - 1) < 0.1  # N(0, channels^-0.5), 256 channels


def test_statistics_are_those_of_the_global_batch():
    x = jax.random.normal(jax.random.key(0), (16, 2, 2, 3)) + jnp.arange(16.0)[:, None, None, None]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x, False)
    apply = jax.jit(lambda x: module.apply(nn.unbox(variables), x, True, mutable=["batch_stats"]))
    out, state = apply(sharded)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-4)
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    statistics = state["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    # A device that saw its own two examples only would have a variance far below.
    assert flat.var(0).min() > 5 * flat[:8].var(0).max()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_size": 48}, r"image_size = 48: a ResNet takes a multiple of 32"),
        ({"layers": (1, 1)}, r"layers = \(1, 1\): expected a tuple of 4 whole"),
        ({"num_heads": 7}, r"num_heads = 7: 64 channels"),
        ({"patch_dropout": 0.5}, r"patch_dropout = 0.5: expected 0: no patches"),
    ],
)
def test_a_resnet_that_cannot_be_built(change, message):
    fields = {"image_size": 64, "layers": (1, 1, 1, 1), "width": 2, "num_heads": 4}
    with pytest.raises(ValueError, match=message):
        ModifiedResNet(**{**fields, "output_dim": 8, **change})


SMALL = tiny_spec(
    image_size=32,
    image_projection="none",
    image={"name": "modified_resnet", "output_dim": 8, "layers": (1, 1, 1, 1), "width": 2},
    text={"depth": 1},
)
SMALL["image"] = {
    key: SMALL["image"][key] for key in ("name", "output_dim", "layers", "width", "num_heads")
}

EFFICIENTNET = {"name": "efficientnet", "width_factor": 0.25, "depth_factor": 0.3}
EFFICIENTNET |= {"drop_connect": 0.2}


def make_step_and_state(num_micro_batches=1):
    model, tx = build_model(SMALL), optax.with_extra_args_support(optax.sgd(0.1))
    images, tokens = inputs(SMALL, 4)
    batch = {"image": (40 * images + 128).astype(jnp.uint8), "text": tokens}
    variables = filled(model, images, tokens)
    state = create_train_state(variables, tx)
    step = make_train_step(
        model.apply,
        make_loss("clip"),
        tx,
        seed=0,
        image_mean=(0.5,) * 3,
        image_std=(0.25,) * 3,
        num_micro_batches=num_micro_batches,
        # A tower without a backward pass compiles in half the time and keeps its statistics.
        frozen=lambda name: name.startswith("image_encoder"),
    )
    return step, state, batch


def test_the_train_step_carries_the_statistics():
    step, state, batch = make_step_and_state()
    step = jax.jit(step)
    after, _ = step(state, batch)
    images = normalise_images(batch["image"], (0.5,) * 3, (0.25,) * 3, jnp.float32)
    found = after.model_state["batch_stats"]["image_encoder"]["bn1"]
    before = state.model_state["batch_stats"]["image_encoder"]["bn1"]
    kernel = state.params["image_encoder"]["conv1"]["kernel"]
    first = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    wanted = 0.9 * before["mean"] + 0.1 * first.mean((0, 1, 2))
    np.testing.assert_allclose(found["mean"], wanted, atol=1e-6)
    # A step that is not finite leaves them as they are.
    poisoned = state.replace(params={**state.params, "logit_scale": jnp.float32(jnp.nan)})
    after, _ = step(poisoned, batch)
    jax.tree.map(np.testing.assert_array_equal, after.model_state, state.model_state)


def test_micro_batches_are_refused():
    step, state, batch = make_step_and_state(num_micro_batches=2)
    with pytest.raises(ValueError, match="num_micro_batches cuts the batch into 2, but"):
        jax.eval_shape(step, state, batch)


@pytest.mark.parametrize(
    "image", [SMALL["image"], pytest.param(EFFICIENTNET, marks=pytest.mark.slow)], ids=["r", "e"]
)
def test_rematerialisation_traces(image):
    spec = {**SMALL, "image": image, "embed_dim": 8 if image is SMALL["image"] else 80}
    images, tokens = inputs(spec, 2)

    def statistics(remat):
        model = build_model(spec, execution=Execution(remat=remat))
        variables = filled(model, images, tokens)

        def loss(params):
            out, state = model.apply(
                {**variables, "params": params},
                images,
                tokens,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return out.image_embeds.sum(), state

        return jax.eval_shape(jax.grad(loss, has_aux=True), variables["params"])

    assert statistics("full") == statistics("none")


def test_a_row_goes_with_the_default_config():
    spec = resolve_spec(to_plain({**default_config().model.to_dict(), "name": "RN50"}))
    assert build_model(spec).image_encoder.layers == [3, 4, 6, 3]
