"""Embeddings of images compute the pooled token alone in the last block: the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import inputs, model_and_params, tiny_spec

from clipjax.encoding.encode_fns import make_encode_fns
from clipjax.layers.execution import PLAIN, Execution
from clipjax.models.images import normalise_images
from clipjax.models.layers_layout import unstack_layers
from clipjax.models.vit import VisionTransformer

WAYS = {
    "scanned": PLAIN,
    "unrolled": Execution(unroll=0),
    "two an iteration": Execution(unroll=2),
    "apart": Execution(apart=True),
}
CASES = [("scanned", 3)] + [
    pytest.param(way, depth, marks=pytest.mark.slow)
    for way, depth in (
        ("apart", 2),
        ("scanned", 1),
        ("unrolled", 3),
        ("two an iteration", 3),
        ("unrolled", 1),
    )
]
POOLINGS = [
    pytest.param("patch_mean"),
    *(pytest.param(p, marks=pytest.mark.slow) for p in ("mean", "map")),
]


def pair(image, way=PLAIN):
    """Embeddings as evaluated, as of all tokens; whether the first have an MLP of one token."""
    spec = tiny_spec(image=image)
    model, params = model_and_params(spec)
    if way.apart:
        params = unstack_layers(params)
    model = model.under(way)
    images = inputs(spec, 3)[0]
    pixels = np.random.default_rng(0).integers(0, 255, images.shape).astype(np.uint8)
    encode = make_encode_fns(model, spec["preprocess"]).image
    mean, std = tuple(spec["preprocess"]["mean"]), tuple(spec["preprocess"]["std"])

    @jax.jit
    def of_all_tokens(variables, pixels):
        whole = normalise_images(pixels, mean, std, jnp.float32)
        return model.apply(variables, whole, method="encode_image")

    plain = of_all_tokens({"params": params}, pixels)
    narrow = f"f32[3,1,{spec['image']['mlp_dim']}]"
    program = str(jax.make_jaxpr(encode)({"params": params}, pixels))
    return jax.jit(encode)({"params": params}, pixels), plain, narrow in program


@pytest.mark.parametrize(("way", "depth"), CASES)
def test_a_class_token_is_the_same_without_the_others_last_block(way, depth):
    way = WAYS[way]
    found, wanted, spared = pair({"pooling": "cls", "depth": depth}, way)
    assert spared
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.slow
def test_so_is_a_pooled_class_token():
    found, wanted, spared = pair({"pooling": "pooler"})
    assert spared
    np.testing.assert_allclose(found, wanted, atol=5e-6)  # one more product's rounding


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_is_pooled_of_all_patches_computes_them_all(pooling):
    found, wanted, spared = pair({"pooling": pooling})
    assert spared == (pooling == "map")  # whose head has one query anyway
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_tower_that_inherits_reads_all_tokens():
    class Own(VisionTransformer):
        pass

    fields, images = (9, 4, 8, 1, 2, 16, "gelu"), jnp.ones((2, 9, 9, 3))
    execution = dataclasses.replace(PLAIN, pooled_only=True)

    def shapes(tower, **options):
        """Of the features, shapes alone."""

        def run(images):
            params = tower.init(jax.random.key(0), images)
            return tower.apply(params, images, **options)

        return jax.eval_shape(run, images)

    own, given = (tower(*fields, execution=execution) for tower in (Own, VisionTransformer))
    assert shapes(own).tokens.shape == (2, 5, 8)
    assert shapes(given).tokens.shape == (2, 1, 8)
    assert shapes(given, keep_hidden=True).hidden.shape == (1, 2, 5, 8)
    assert shapes(given, train=True).tokens.shape == (2, 1, 8)
    dropping = given.clone(dropout=0.5)  # whose draws belong to tokens
    assert shapes(dropping).tokens.shape == (2, 1, 8)
    rngs = {"dropout": jax.random.key(1)}
    assert shapes(dropping, train=True, rngs=rngs).tokens.shape == (2, 5, 8)
