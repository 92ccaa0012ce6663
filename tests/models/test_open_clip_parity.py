"""Outputs and gradients against open_clip, as tests/golden/models/make_open_clip.py wrote them."""

import jax
import numpy as np
import pytest
from open_clip_golden import load, relative_error

from clipjax.losses import clip_loss, siglip_loss
from clipjax.models import build_model
from clipjax.trees import flatten_with_names

CASES = ("vit_quick_gelu", "vit_gelu", "clipa", "siglip")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(golden arrays, wanted gradients, loss, outputs, hidden states, gradients)"""
    spec, golden, params, want, images, tokens = load(request.param)
    model = build_model(spec)

    def run(params):
        bind = {"params": params}
        out = model.apply(bind, images, tokens)
        text = model.apply(bind, tokens, keep_hidden=True, method="text_features")
        image = model.apply(bind, images, keep_hidden=True, method="image_features")
        loss_fn = clip_loss if out.logit_bias is None else siglip_loss
        loss = loss_fn(*out)
        return loss, (out, image.hidden, text.hidden)

    (loss, aux), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    return golden, want, loss, *aux, gradient


def test_embeddings_and_hidden_states(case):
    golden, _, _, out, image_hidden, text_hidden, _ = case
    assert np.abs(out.image_embeds - golden["image_embeds"]).max() <= 2e-6
    assert np.abs(out.text_embeds - golden["text_embeds"]).max() <= 2e-6
    assert np.abs(text_hidden - golden["text_hidden"]).max() <= 1e-5
    assert np.abs(image_hidden - golden["image_hidden"]).max() <= 1e-5


def test_gradient_of_every_leaf(case):
    golden, want, loss, *_, gradient = case
    assert abs(loss - golden["loss"]) <= 1e-5
    assert jax.tree.structure(gradient) == jax.tree.structure(want)
    errors = jax.tree.map(relative_error, jax.device_get(gradient), jax.device_get(want))
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
