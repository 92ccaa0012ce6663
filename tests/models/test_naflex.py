"""NaFlex against transformers, as tests/golden/models/make_naflex.py wrote it."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from open_clip_golden import GOLDEN

from clipjax.array_types import Patches
from clipjax.config import merge
from clipjax.data.images.naflex import PatchPreprocess, make_preprocess, patch_grid
from clipjax.data.images.preprocess import Preprocess
from clipjax.interop import convert
from clipjax.interop.hugging_face.siglip2 import leaves
from clipjax.interop.tensors import of_array
from clipjax.layers.position_grid import positions_of_patches
from clipjax.models import MODELS, build_model
from clipjax.models.images import normalise_images
from clipjax.models.layers_layout import stack_layers
from clipjax.trees import unflatten_names

TOWER = {"width": 32, "depth": 3, "num_heads": 4, "mlp_dim": 48}
CHANGES = {
    "embed_dim": 32,
    "image_size": 20,
    "image": TOWER | {"patch_size": 4, "position_side": 5},
    "text": TOWER | {"vocab_size": 50, "context_length": 10},
    "preprocess": {"max_patches": 24},
}
SPEC = merge(MODELS["siglip2-b-16-naflex"], CHANGES)


@functools.cache
def golden():
    """(golden arrays, our parameters, Patches, tokens)"""
    arrays = dict(np.load(GOLDEN / "naflex.npz"))
    shapes = json.loads(str(arrays["parameters"]))
    tensors = {name: of_array(seeded.weight(name, tuple(s))) for name, s in shapes.items()}
    found = convert(leaves(SPEC), tensors, SPEC)
    params = stack_layers(unflatten_names({name: x.read() for name, x in found.items()}))
    grids = np.array(json.loads(str(arrays["config"]))["grids"], np.int32)
    patches = Patches(seeded.patches(grids, 24, 48), grids)
    return arrays, params, patches, seeded.tokens(len(grids), 10, 50)


def features(params, patches):
    model, bind = build_model(SPEC), {"params": params}
    embeds = model.apply(bind, patches, method="encode_image")
    return embeds, model.apply(bind, patches, keep_hidden=True, method="image_features")


def test_images_of_any_aspect():
    arrays, params, patches, tokens = golden()
    embeds, found = jax.jit(features)(params, patches)
    assert np.abs(embeds - arrays["image_embeds"]).max() <= 2e-6
    inside = (np.arange(24) < patches.grid.prod(1)[:, None])[:, :, None]
    assert np.abs((found.tokens - arrays["image_tokens"]) * inside).max() <= 1e-5
    assert np.abs((found.hidden - arrays["image_hidden"]) * inside).max() <= 1e-5
    assert np.isfinite(found.tokens).all()
    text = jax.jit(lambda p: build_model(SPEC).apply(p, tokens, method="encode_text"))
    assert np.abs(text({"params": params}) - arrays["text_embeds"]).max() <= 2e-6
    # Padding is of no consequence; what is inside is.
    changed = patches._replace(pixels=np.where(inside, patches.pixels, 7).astype(np.float32))
    again, _ = jax.jit(features)(params, changed)
    np.testing.assert_allclose(again, embeds, atol=1e-6)
    turned = patches._replace(grid=patches.grid[:, ::-1])
    other, _ = jax.jit(features)(params, turned)
    square = patches.grid[:, 0] == patches.grid[:, 1]
    assert (np.abs(other - embeds).max(axis=1) > 1e-3).tolist() == (~square).tolist()


def test_images_of_one_size_are_whole_grids():
    _, params, *_ = golden()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), dtype=np.uint8)
    cut = pixels.reshape(2, 3, 4, 5, 4, 3).swapaxes(2, 3).reshape(2, 15, 48)
    padded = Patches(np.pad(cut, ((0, 0), (0, 9), (0, 0))), np.array([[3, 5]] * 2, np.int32))
    one = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "dtype": jnp.float32}
    run = jax.jit(lambda p, images: features(p, normalise_images(images, **one))[0])
    np.testing.assert_allclose(run(params, padded), run(params, pixels), atol=1e-6)
    with pytest.raises(ValueError, match="12 x 18, which patches of 4 do not fill"):
        jax.eval_shape(run, params, pixels[:, :, :18])


@pytest.mark.parametrize("grid", [(4, 4), (2, 2), (12, 1), (1, 12), (3, 7), (1, 1)])
def test_positions_are_those_of_a_resized_table(grid):
    table = np.random.default_rng(0).standard_normal((4, 4, 3)).astype(np.float32)
    found = positions_of_patches(jnp.asarray(table), jnp.array([grid]), 24)[0]
    wanted = jax.image.resize(table, (*grid, 3), "bilinear", antialias=True).reshape(-1, 3)
    np.testing.assert_allclose(found[: len(wanted)], wanted, atol=1e-6)
    assert np.isfinite(found).all()


def test_pixels_become_the_published_patches():
    arrays, *_ = golden()
    columns = [arrays[name] for name in ("sizes", "size_grids", "digests")]
    for size, grid, digest in zip(*columns, strict=True):
        height, width, patch_size, max_patches = map(int, size)
        found = PatchPreprocess(patch_size, max_patches)(seeded.picture(height, width))
        assert found.grid.tolist() == grid.tolist()
        assert hashlib.sha256(found.pixels.tobytes()).hexdigest() == digest
    # The control: another kernel gives other bytes.
    other = PatchPreprocess(patch_size, max_patches, interpolation="bicubic")
    assert not np.array_equal(other(seeded.picture(height, width)).pixels, found.pixels)


@pytest.mark.parametrize("side", [1, 17, 500, 5000])
@pytest.mark.parametrize("budget", [1, 256, 1024])
def test_the_budget_is_kept_and_used(side, budget):
    for other in (1, 16, 333, 640, 5000):
        rows, columns = patch_grid(side, other, 16, budget)
        assert 1 <= rows * columns <= budget
        # One more row or column of patches for the same aspect would be too many.
        assert (rows + 1) * (columns + 1) > budget or max(side, other) <= 16 * budget / 100


def test_the_preprocessing_of_a_row():
    assert make_preprocess(MODELS["siglip2-b-16-naflex"]) == PatchPreprocess(16, 256)
    found = make_preprocess(MODELS["ViT-B-32"])
    assert found == Preprocess(224, resize="shortest", interpolation="bicubic")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"patch_size": 0, "max_patches": 4}, "preprocess.patch_size is 0, at least 1"),
        ({"patch_size": 4, "max_patches": 0}, "preprocess.max_patches is 0, at least 1"),
        ({"patch_size": 4, "max_patches": 4, "interpolation": "box"}, "allowed are bicubic, bil"),
    ],
)
def test_what_cannot_be_asked_for(fields, message):
    with pytest.raises(ValueError, match=message):
        PatchPreprocess(**fields)


def test_what_cannot_be_built():
    for change, message in (
        ({"num_heads": 5}, "32 does not divide by num_heads = 5"),
        ({"patch_dropout": 0.5}, "no patches are left out"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(SPEC | {"image": SPEC["image"] | change})
