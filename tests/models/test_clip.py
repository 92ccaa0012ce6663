import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import inputs, model_and_params, tiny_spec

from clipjax.models import build_model, count_model_parameters
from clipjax.trees import count_parameters, flatten_with_names

NOISY = tiny_spec(
    image={"patch_dropout": 0.5, "dropout": 0.3, "pooling": "mean", "depth": 1},
    text={"dropout": 0.3, "depth": 1},
)
IDS = jnp.array([4, 7, 1, 0])
# One hardware-like generator op a draw, where threefry would compile for seconds.
CHEAP_KEY = jax.random.key(5, impl="rbg")


@pytest.fixture(scope="module")
def noisy():
    """A model with every kind of noise: (step, images, tokens), step(images, tokens, ids, key)."""
    model, params = model_and_params(NOISY)

    def step(images, tokens, ids, key=0):
        rngs = {"dropout": jax.random.key(key)}
        out = model.apply(
            {"params": params}, images, tokens, train=True, example_ids=ids, rngs=rngs
        )
        return jnp.concatenate([out.image_embeds, out.text_embeds], axis=1)

    return jax.jit(step), *inputs(NOISY, 4)


def test_noise_belongs_to_the_example_and_not_to_its_place(noisy):
    step, images, tokens = noisy
    out = step(images, tokens, IDS)
    order = jnp.array([2, 0, 3, 1])
    moved = step(images[order], tokens[order], IDS[order])
    np.testing.assert_allclose(moved, out[order], atol=1e-6)
    # With the ids left behind, the noise is another's.
    stayed = step(images[order], tokens[order], IDS)
    assert np.abs(stayed - out[order]).max(axis=1).min() > 1e-2
    assert np.abs(step(images, tokens, IDS, 1) - out).max(axis=1).min() > 1e-2


def test_micro_batches_draw_what_the_batch_draws(noisy):
    step, images, tokens = noisy
    halves = [step(images[i : i + 2], tokens[i : i + 2], IDS[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(jnp.concatenate(halves), step(images, tokens, IDS), atol=1e-6)


def test_output():
    spec = tiny_spec(logit_bias=-10.0)
    model, params = model_and_params(spec)
    images, tokens = inputs(spec)
    out = jax.jit(model.apply)({"params": params}, images, tokens)
    for embeds in (out.image_embeds, out.text_embeds):
        assert embeds.shape == (3, 8) and embeds.dtype == jnp.float32
        np.testing.assert_allclose(jnp.linalg.norm(embeds, axis=1), 1, atol=1e-6)
    assert out.logit_scale == params["logit_scale"] and out.logit_bias == params["logit_bias"]
    text = jax.jit(lambda t: model.apply({"params": params}, t, method="encode_text"))(tokens)
    np.testing.assert_allclose(text, out.text_embeds, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_stores_float32():
    model, params = model_and_params(tiny_spec(), dtype="bfloat16")
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    images, tokens = inputs(tiny_spec())
    bind = {"params": params}
    found, features = jax.jit(
        lambda: (
            model.apply(bind, images, tokens),
            model.apply(bind, tokens, method="text_features"),
        )
    )()
    assert features.tokens.dtype == jnp.bfloat16
    exact = jax.jit(build_model(tiny_spec()).apply)(bind, images, tokens)
    error = jnp.abs(found.text_embeds - exact.text_embeds).max()
    assert found.text_embeds.dtype == jnp.float32 and 0 < error < 0.05


def test_counting_allocates_nothing_and_agrees():
    _, params = model_and_params(tiny_spec())
    counts = count_model_parameters(tiny_spec())
    assert counts["total"] == count_parameters(params) == counts["image"] + counts["text"] + 1


def test_initialisation_of_every_leaf():
    """facts of openai/CLIP initialize_parameters; the blocks' are in test_initializers."""
    width, depth, patch = 16, 2, 4
    uniform = 3**-0.5
    text_out = width**-0.5 * (2 * depth) ** -0.5
    wanted = {
        "image_encoder/class_embedding": width**-0.5,
        "image_encoder/position_embedding": width**-0.5,
        "image_encoder/patch_kernel": uniform * (3 * patch * patch) ** -0.5,
        "image_encoder/transformer/blocks/attention/qkv_kernel": (2 / (4 * width)) ** 0.5,
        "image_encoder/transformer/blocks/attention/out_kernel": uniform * width**-0.5,
        "image_encoder/transformer/blocks/mlp/fc/kernel": uniform * width**-0.5,
        "image_encoder/transformer/blocks/mlp/fc/bias": uniform * width**-0.5,
        "image_encoder/transformer/blocks/mlp/proj/kernel": uniform * 32**-0.5,
        "image_encoder/transformer/blocks/mlp/proj/bias": uniform * 32**-0.5,
        "image_projection/kernel": width**-0.5,
        "text_encoder/token_embedding": 0.02,
        "text_encoder/position_embedding": 0.01,
        "text_encoder/transformer/blocks/attention/qkv_kernel": width**-0.5,
        "text_encoder/transformer/blocks/attention/out_kernel": text_out,
        "text_encoder/transformer/blocks/mlp/fc/kernel": (2 * width) ** -0.5,
        "text_encoder/transformer/blocks/mlp/fc/bias": uniform * width**-0.5,
        "text_encoder/transformer/blocks/mlp/proj/kernel": text_out,
        "text_encoder/transformer/blocks/mlp/proj/bias": uniform * 32**-0.5,
        "text_projection/kernel": width**-0.5,
    }
    spec = tiny_spec(logit_bias=-10.0)
    variables = jax.jit(build_model(spec).init)(CHEAP_KEY, *inputs(spec, 1))
    leaves = dict(flatten_with_names(nn.unbox(variables)["params"]))
    assert leaves.pop("logit_scale") == np.float32(math.log(1 / 0.07))
    assert leaves.pop("logit_bias") == -10
    for name, leaf in leaves.items():
        if name in wanted:
            tolerance = 5 / (2 * leaf.size) ** 0.5
            assert abs(np.std(leaf) / wanted[name] - 1) < tolerance, name
        elif name.endswith("scale"):
            assert (leaf == 1).all(), name
        else:
            assert "ln_" in name or "attention" in name, name
            assert (leaf == 0).all(), name
    assert set(wanted) <= set(leaves)


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("image", {"pooling": "max"}, "pooling = 'max': allowed are .*cls.*mean"),
        ("image", {"width": 15}, "width = 15 does not divide by num_heads = 2"),
        (
            "image",
            {"patch_dropout": 1.0},
            r"patch_dropout = 1.0: expected a finite number in \[0, 1\)",
        ),
        ("image", {"patch": 4}, "^image.patch is not a field of 'vit'"),
        ("image", {"name": "vitt"}, "^image.name = 'vitt' is unknown.*mean 'vit'"),
        ("text", {"pooling": "cls"}, "pooling = 'cls': allowed are .*eot.*last.*mean"),
        ("text", {"name": "bidirectional_transformer", "causal": True}, "causal is not a field of"),
        ("text", {"num_heads": 3}, "width = 16 does not divide by num_heads = 3"),
    ],
)
def test_a_spec_that_cannot_be_built(part, change, message):
    with pytest.raises(ValueError, match=message):
        count_model_parameters(tiny_spec(**{part: change}))


def test_projections():
    with pytest.raises(ValueError, match=r"^image_projection = 'conv' is unknown"):
        count_model_parameters(tiny_spec(image_projection="conv"))
    with pytest.raises(ValueError, match=r"passes on 16 features, embed_dim = 8"):
        count_model_parameters(tiny_spec(image_projection="none"))
    counts = count_model_parameters(tiny_spec())
    with_bias = count_model_parameters(tiny_spec(text_projection="linear_bias"))
    assert with_bias["text"] == counts["text"] + 8 and with_bias["image"] == counts["image"]


@pytest.mark.slow  # its draws: tests/layers/test_initializers.py
def test_initialisation_of_siglip():
    """big_vision: Xavier kernels, embeddings of deviation width^-0.5, MLP biases next to zero."""
    width = 16
    xavier = {"init_name": "xavier"}
    image = {"pooling": "map", "patch_bias": True, "pre_norm": False, **xavier}
    spec = tiny_spec(image=image, text=xavier, text_projection="linear_bias")
    variables = jax.jit(build_model(spec).init)(CHEAP_KEY, *inputs(spec, 1))
    leaves = dict(flatten_with_names(nn.unbox(variables)["params"]))
    square, rectangle = (2 / (2 * width)) ** 0.5, (2 / (width + 32)) ** 0.5
    wanted = {
        "image_encoder/patch_kernel": 48**-0.5,
        "image_encoder/position_embedding": width**-0.5,
        "image_encoder/map_head/probe": (2 / (1 + width)) ** 0.5,
        "image_encoder/map_head/attention/q_kernel": square,
        "image_encoder/map_head/attention/kv_kernel": square,
        "image_encoder/map_head/attention/out_kernel": square,
        "image_encoder/map_head/mlp/fc/kernel": rectangle,
        "image_encoder/map_head/mlp/fc/bias": 1e-6,
        "image_encoder/map_head/attention/out_bias": 0,
        "image_encoder/patch_bias": 0,
        "text_encoder/token_embedding": width**-0.5,
        "text_encoder/position_embedding": width**-0.5,
        "text_encoder/transformer/blocks/attention/qkv_kernel": square,
        "text_encoder/transformer/blocks/mlp/fc/kernel": rectangle,
        "text_projection/kernel": width**-0.5,
        "text_projection/bias": 0,
    }
    for name, deviation in wanted.items():
        tolerance = 5 / (2 * leaves[name].size) ** 0.5
        assert abs(np.std(leaves[name]) - deviation) <= tolerance * deviation, name


def test_inputs_of_another_size():
    model = build_model(tiny_spec())
    images, tokens = inputs(tiny_spec())
    with pytest.raises(
        ValueError, match=r"images are \(20, 20, 3\), the model takes \(16, 16, 3\)"
    ):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 20, 20, 3)), tokens)
    with pytest.raises(ValueError, match="texts are 7 tokens, the model takes 8"):
        jax.eval_shape(model.init, jax.random.key(0), images, tokens[:, :7])
