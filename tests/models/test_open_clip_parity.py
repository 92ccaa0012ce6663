"""Outputs and gradients against open_clip, as tests/golden/models/make_open_clip.py wrote them."""

import jax
import numpy as np
import pytest
from open_clip_golden import load, relative_error

from clipjax.losses import clip_loss, siglip_loss
from clipjax.models import build_model
from clipjax.trees import flatten_with_names

CASES = ("vit_quick_gelu", "vit_gelu", "clipa", "siglip", "pe_core")


@pytest.mark.parametrize(
    "name",
    # The hidden states of the other ViT: tests/inference/test_tokens.py.
    [pytest.param(x, marks=pytest.mark.slow) if x == "vit_gelu" else x for x in CASES],
)
def test_embeddings_and_hidden_states(name):
    spec, golden, params, _, images, tokens = load(name)
    model = build_model(spec)

    def run(params):
        bind = {"params": params}
        out = model.apply(bind, images, tokens)
        text = model.apply(bind, tokens, keep_hidden=True, method="text_features")
        image = model.apply(bind, images, keep_hidden=True, method="image_features")
        return out, image.hidden, text.hidden

    out, image_hidden, text_hidden = jax.jit(run)(params)
    assert np.abs(out.image_embeds - golden["image_embeds"]).max() <= 2e-6
    assert np.abs(out.text_embeds - golden["text_embeds"]).max() <= 2e-6
    assert np.abs(text_hidden - golden["text_hidden"]).max() <= 1e-5
    assert np.abs(image_hidden - golden["image_hidden"]).max() <= 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "vit_quick_gelu",
        "siglip",
        pytest.param("vit_gelu", marks=pytest.mark.slow),
        pytest.param("clipa", marks=pytest.mark.slow),
        pytest.param("pe_core", marks=pytest.mark.slow),
    ],
)
def test_gradient_of_every_leaf(name):
    spec, golden, params, want, images, tokens = load(name)
    model = build_model(spec)

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(params):
        out = model.apply({"params": params}, images, tokens)
        return (clip_loss if out.logit_bias is None else siglip_loss)(*out)

    loss, gradient = loss_and_gradient(params)
    assert abs(loss - golden["loss"]) <= 1e-5
    assert jax.tree.structure(gradient) == jax.tree.structure(want)
    errors = jax.tree.map(relative_error, jax.device_get(gradient), want)
    worst = {name: float(e) for name, e in flatten_with_names(errors) if not e <= 1e-4}
    assert worst == {}


@pytest.mark.parametrize(
    "change", [{"layer_norm_eps": 1e-6}, {"activation": "gelu_tanh"}], ids=["eps", "activation"]
)
def test_a_wrong_constant_is_seen(change):
    spec, golden, params, _, _, tokens = load("vit_gelu")
    model = build_model({**spec, "text": {**spec["text"], **change}})
    encode = jax.jit(lambda p: model.apply({"params": p}, tokens, method="encode_text"))
    assert np.abs(encode(params) - golden["text_embeds"]).max() > 4e-6


@pytest.mark.slow
def test_other_places_of_the_rotary_positions_are_seen():
    spec, golden, params, _, images, _ = load("pe_core")
    model = build_model({**spec, "image": {**spec["image"], "rotary_side": 4}})
    encode = jax.jit(lambda p: model.apply({"params": p}, images, method="encode_image"))
    assert np.abs(encode(params) - golden["image_embeds"]).max() > 4e-6
