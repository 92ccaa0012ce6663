import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled

from clipjax.layers.position_embeddings import sincos_2d
from clipjax.models.vit import VisionTransformer

IMAGES = jax.random.normal(jax.random.key(1), (2, 9, 9, 3))


def encode(images=IMAGES, **options):
    encoder = VisionTransformer(9, 4, 8, 1, 2, 16, "gelu", **options)
    params = filled(encoder, images)["params"]
    return jax.jit(encoder.apply)({"params": params}, images), params


def norm(x, params):
    normal = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * params["ln_post"]["scale"] + params["ln_post"]["bias"]


def test_class_token_is_pooled():
    features, params = encode()
    assert features.tokens.shape == (2, 5, 8) and params["position_embedding"].shape == (5, 8)
    np.testing.assert_allclose(features.pooled, norm(features.tokens[:, 0], params), atol=1e-5)


def test_mean_of_the_patches_is_pooled():
    features, params = encode(pooling="mean")
    assert features.tokens.shape == (2, 4, 8) and "class_embedding" not in params
    np.testing.assert_allclose(features.pooled, norm(features.tokens.mean(1), params), atol=1e-5)


def test_fixed_positions_have_no_parameter_and_spare_the_class_token():
    options = {"pooling": "patch_mean", "positions": "sincos2d", "pre_norm": False}
    features, params = encode(**options)
    assert "position_embedding" not in params and params["class_embedding"].shape == (8,)
    assert features.tokens.shape == (2, 4, 8)
    np.testing.assert_allclose(features.pooled, norm(features.tokens.mean(1), params), atol=1e-5)
    # The same numbers, learned: zero for the class token.
    fixed = jnp.pad(sincos_2d(2, 8), ((1, 0), (0, 0)))
    encoder = VisionTransformer(9, 4, 8, 1, 2, 16, "gelu", **{**options, "positions": "learned"})
    learned = jax.jit(encoder.apply)({"params": {**params, "position_embedding": fixed}}, IMAGES)
    np.testing.assert_allclose(learned.pooled, features.pooled, atol=1e-5)


def test_patches_are_the_convolution():
    """The patch embedding is a strided convolution without padding: odd pixels are cut off."""
    encoder = VisionTransformer(9, 4, 8, 1, 2, 16, "gelu", pooling="mean", pre_norm=False)
    params = filled(encoder, IMAGES)["params"]
    params["position_embedding"] *= 0
    # Blocks that add nothing leave the embedded patches.
    blocks = params["transformer"]["blocks"]
    for branch, layer in (("attention", "out_kernel"), ("attention", "out_bias"), ("mlp", "proj")):
        blocks[branch][layer] = jax.tree.map(jnp.zeros_like, blocks[branch][layer])
    found = jax.jit(encoder.apply)({"params": params}, IMAGES).tokens
    wanted = jax.lax.conv_general_dilated(
        IMAGES, params["patch_kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, wanted.reshape(2, 4, 8), atol=1e-5)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="width 8 does not divide by 3 heads"):
        VisionTransformer(9, 4, 8, 1, 3, 16, "gelu")
