import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled

from clipjax.layers.position_embeddings import resize_grid, sincos_2d
from clipjax.models.vit import VisionTransformer

IMAGES = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, 9, 3), np.float32))


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


def test_the_pooler_is_a_dense_layer_with_tanh_behind_the_norm():
    features, params = encode(pooling="pooler", pre_norm=False, patch_bias=True)
    first = norm(features.tokens[:, 0], params)
    wanted = jnp.tanh(first @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    np.testing.assert_allclose(features.pooled, wanted, atol=1e-5)


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
    with pytest.raises(ValueError, match="width = 8 does not divide by num_heads = 3"):
        VisionTransformer(9, 4, 8, 1, 3, 16, "gelu")


SMALL = jnp.asarray(np.random.default_rng(2).standard_normal((2, 8, 8, 3), np.float32))


def small_stage(images=SMALL, **options):
    """(apply of an 8-pixel encoder over the positions of 16 pixels, its parameters)"""
    encoder = VisionTransformer(8, 4, 8, 1, 2, 16, "gelu", table_image_size=16, **options)
    params = filled(encoder, images)["params"]
    return jax.jit(lambda params: encoder.apply({"params": params}, images).pooled), params


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_smaller_images_use_the_resized_positions(pooling):
    """As an encoder of that size with the table resized beforehand."""
    apply, params = small_stage(pooling=pooling)
    num_extra = int(pooling == "cls")
    table = params["position_embedding"]
    assert table.shape == (num_extra + 16, 8)
    own = VisionTransformer(8, 4, 8, 1, 2, 16, "gelu", pooling=pooling)
    resized = resize_grid(table, (2, 2), num_extra=num_extra)

    @jax.jit
    def with_table(table):
        return own.apply({"params": {**params, "position_embedding": table}}, SMALL).pooled

    wanted = with_table(resized)
    np.testing.assert_allclose(apply(params), wanted, atol=1e-6)
    # Negative control: the first rows of the table are other positions.
    assert np.abs(with_table(table[: num_extra + 4]) - wanted).max() > 1e-3


def test_gradients_reach_every_row_of_the_table_through_the_resizing():
    apply, params = small_stage()
    direction = jax.random.normal(jax.random.key(3), (2, 8))
    grad = jax.jit(jax.grad(lambda params: (apply(params) * direction).sum()))(params)
    grad = grad["position_embedding"]
    assert (jnp.abs(grad).max(axis=1) > 1e-5).all()
    # In the direction of the gradient the value changes as the gradient says.
    step = 1e-2 * grad / jnp.linalg.norm(grad)

    def value(sign):
        moved = {**params, "position_embedding": params["position_embedding"] + sign * step}
        return (apply(moved) * direction).sum()

    np.testing.assert_allclose(value(1) - value(-1), 2e-2 * jnp.linalg.norm(grad), rtol=2e-2)


def test_fixed_positions_of_a_smaller_image_are_those_of_its_own_grid():
    options = {"pooling": "patch_mean", "positions": "sincos2d", "pre_norm": False}
    apply, params = small_stage(**options)
    own = VisionTransformer(8, 4, 8, 1, 2, 16, "gelu", **options)
    wanted = jax.jit(own.apply)({"params": params}, SMALL).pooled
    np.testing.assert_array_equal(apply(params), wanted)
