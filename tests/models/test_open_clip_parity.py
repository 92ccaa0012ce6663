"""Outputs and gradients against open_clip, as tests/golden/models/make_open_clip.py wrote them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import seeded
from open_clip_names import from_open_clip

from clipjax.config import merge
from clipjax.losses import clip_loss, siglip_loss
from clipjax.models import MODELS, build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.trees import flatten_with_names, unflatten_names

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
CASES = ("vit_quick_gelu", "vit_gelu", "siglip")


SIGLIP = {
    field: MODELS["siglip-b-16-224"][field]
    for field in ("image_projection", "text_projection", "logit_bias")
} | {
    "image": {"pooling": "map", "pre_norm": False, "patch_bias": True},
    "text": {"name": "bidirectional_transformer", "pooling": "last"},
}
for tower in ("image", "text"):
    SIGLIP[tower] |= {"activation": "gelu_tanh", "layer_norm_eps": 1e-6, "init_name": "xavier"}


def spec_of(config):
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    common = {"activation": activation, "layer_norm_eps": 1e-5}
    image, text = config["vision_cfg"], config["text_cfg"]
    spec = {
        "embed_dim": config["embed_dim"],
        "image_size": image["image_size"],
        "image": {
            "name": "vit",
            "patch_size": image["patch_size"],
            "width": image["width"],
            "depth": image["layers"],
            "num_heads": image["width"] // image["head_width"],
            "mlp_dim": 4 * image["width"],
            "pooling": "cls",
            **common,
        },
        "text": {
            "name": "causal_transformer",
            "vocab_size": text["vocab_size"],
            "context_length": text["context_length"],
            "width": text["width"],
            "depth": text["layers"],
            "num_heads": text["heads"],
            "mlp_dim": 4 * text["width"],
            "pooling": "eot",
            **common,
        },
        "logit_scale": {"init": 1 / 0.07, "max": 100.0},
        "logit_bias": None,
    }
    return merge(spec, SIGLIP) if config.get("siglip") else spec


def convert(tensors, spec):
    leaves = dict(from_open_clip(name, x, spec) for name, x in tensors.items())
    return stack_layers(unflatten_names(leaves))


def relative_error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def load(name):
    """(spec, golden arrays, our parameters, wanted gradients, images, tokens)"""
    golden = dict(np.load(GOLDEN / f"open_clip_{name}.npz"))
    spec = spec_of(json.loads(str(golden["config"])))
    prefix = "gradient/"
    gradients = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    weights = {name: seeded.weight(name, g.shape) for name, g in gradients.items()}
    images = seeded.images(4, spec["image_size"])
    tokens = seeded.tokens(4, spec["text"]["context_length"], spec["text"]["vocab_size"])
    return spec, golden, convert(weights, spec), convert(gradients, spec), images, tokens


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
