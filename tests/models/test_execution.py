"""A tower gives the same embeddings and gradients however it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import inputs, model_and_params, tiny_spec

from clipjax.config import merge
from clipjax.layers.execution import APART, PLAIN, Execution, under_execution
from clipjax.layers.remat import REMAT

BERT = {
    "name": "bert", "vocab_size": 20, "context_length": 8, "width": 16, "depth": 2,
    "num_heads": 2, "mlp_dim": 32, "num_positions": 8, "layer_norm_eps": 1e-5,
}  # fmt: skip
NAFLEX = {
    "name": "naflex_vit", "patch_size": 4, "position_side": 3, "width": 16, "depth": 2,
    "num_heads": 2, "mlp_dim": 32, "activation": "gelu",
}  # fmt: skip
PERCEPTION = {
    "name": "perception_encoder", "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2,
    "mlp_dim": 32, "pool_heads": 4,
}  # fmt: skip
SPECS = {
    "class token, causal, eot": tiny_spec(),
    "map, patches left out": tiny_spec(image={"pooling": "map", "patch_dropout": 0.5}),
    "rotary": {**tiny_spec(), "image": PERCEPTION},
    "poolers": {**tiny_spec(image={"pooling": "pooler"}), "text": {**BERT, "pooling": "pooler"}},
    "naflex, bert": {**tiny_spec(), "image": NAFLEX, "text": BERT},
}
WAYS = {
    remat: Execution(
        platform="gpu", attention="xla", unroll=number % 2, row_major=True, remat=remat
    )
    for number, remat in enumerate(REMAT)
}
QUICK = ("map, patches left out", "names")
CASES = [QUICK] + [
    pytest.param(name, way, marks=pytest.mark.slow)
    for name in SPECS
    for way in WAYS
    if (name, way) != QUICK
]


def runner(spec, model):
    """Gives gradients and embeddings of parameters, compiled once."""
    images, tokens = inputs(spec)

    def loss(params):
        out = model.apply(
            {"params": params},
            images,
            tokens,
            train=True,
            example_ids=jnp.arange(3),
            rngs={"dropout": jax.random.key(1)},
        )
        pairs = out.image_embeds.astype(jnp.float32) @ out.text_embeds.astype(jnp.float32).T
        return (pairs * jnp.arange(9.0).reshape(3, 3)).sum(), out

    compiled = jax.jit(jax.grad(loss, has_aux=True))

    def of(params):
        gradient, out = compiled(params)
        return jax.tree.leaves((gradient, out.image_embeds, out.text_embeds))

    return of


def run(spec, params, model):
    return runner(spec, model)(params)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_values_and_gradients_are_those_of_the_plain_way(name, way):
    model, params = model_and_params(SPECS[name])
    plain = runner(SPECS[name], model)
    wanted = plain(params)
    found = run(SPECS[name], params, model.under(WAYS[way]))
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-5 * max(1, np.abs(w).max()))
    # Negative control: other parameters give others.
    other = jax.tree.map(lambda leaf: leaf * 1.01, params)
    changed = plain(other)
    assert max(np.abs(c - w).max() for c, w in zip(changed, wanted, strict=True)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["class token, causal, eot", "map, patches left out", "naflex, bert"]
)
def test_towers_through_the_kernel_for_short_sequences_are_those_of_xla(name):
    """Interpreted; two heads of 64 fill the lanes of a TPU. Each attention is within 1e-5."""
    wide = {"width": 128, "mlp_dim": 32}
    spec = merge(SPECS[name], {"image": wide, "text": wide})
    model, params = model_and_params(spec)
    wanted = run(spec, params, model)
    for remat in ("none", "attention"):
        way = Execution(platform="tpu", attention="pallas", remat=remat)
        found = run(spec, params, model.under(way))
        for f, w in zip(found, wanted, strict=True):
            np.testing.assert_allclose(f, w, rtol=5e-5, atol=5e-5 * max(1, np.abs(w).max()))
    images, tokens = inputs(spec)
    kernel = jax.make_jaxpr(lambda: model.under(way).apply({"params": params}, images, tokens))()
    assert "pallas_call" in str(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_bfloat16_differs_by_its_rounding_alone(name):
    exact, params = model_and_params(SPECS[name])
    wanted = run(SPECS[name], params, exact)
    model, _ = model_and_params(SPECS[name], dtype="bfloat16")
    plain = run(SPECS[name], params, model)
    lean = run(SPECS[name], params, model.under(WAYS["names"]))

    def error(found):
        pairs = zip(found, wanted, strict=True)
        return sum(float(np.square(np.float32(f) - np.float32(w)).sum()) for f, w in pairs) ** 0.5

    assert 0 < error(lean) < 1.2 * error(plain)


class Older(nn.Module):
    scan_layers: bool = True


def test_a_tower_of_ones_own_still_gets_scan_layers():
    assert under_execution(Older(), APART).scan_layers is False
    assert under_execution(Older(), PLAIN).scan_layers is True
