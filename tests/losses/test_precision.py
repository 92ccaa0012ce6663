"""Products of the loss: nothing is left to a platform, and both dtypes keep their bars."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax.sharding import AbstractMesh

from clipjax.losses import make_loss
from clipjax.platforms import platform_of


def products(dtype, layout, platform):
    """The matrix products of loss and gradient, as they go to a platform's compiler."""
    x = jax.ShapeDtypeStruct((1024, 128), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    loss_fn = make_loss("clip", layout=layout, dtype=dtype)
    step = jax.jit(jax.value_and_grad(loss_fn, (0, 1, 2), has_aux=True))
    text = step.trace(x, x, scalar).lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"stablehlo.dot_general .*", text)
    assert len(found) >= 3, "logits and the two gradients"
    return found


@pytest.mark.parametrize("layout", ["dense", "grid", "ring"])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_products_of_float32_ask_for_all_their_bits(layout, platform):
    """By default a TPU would round their factors to bfloat16, a GPU to TF32."""
    for line in products("float32", layout, platform):
        assert "precision = [HIGHEST, HIGHEST]" in line, line


def test_products_of_bfloat16_accumulate_in_float32():
    in_bfloat16 = r"xbf16>, tensor<\w+xbf16>\) -> tensor<\w+xf32>"
    found = products("bfloat16", "grid", "tpu")
    assert sum(bool(re.search(in_bfloat16, line)) for line in found) >= 3
    for line in found:  # the mean cosine is of float32 sums
        assert re.search(in_bfloat16, line) or "precision = [HIGHEST, HIGHEST]" in line, line


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pair_that_is_there_twice_is_its_own_negative(oracle, name, dtype):
    """Positives are multiplied element by element, negatives by a product: they are alike."""
    image, text, _, _ = oracle.problem(1, 64)
    image, text = jnp.tile(image, (2, 1)), jnp.tile(text, (2, 1))
    scale, bias = jnp.float32(np.log(100.0)), jnp.float32(-50.0)
    loss, _ = make_loss(name, layout="grid", dtype=dtype)(image, text, scale, bias)
    rounded = (
        np.asarray(image.astype(dtype), np.float64),
        np.asarray(text.astype(dtype), np.float64),
    )
    logit = 100.0 * np.sum(rounded[0] * rounded[1], axis=1)[0] - 50.0
    expected = np.log(2.0) if name == "clip" else np.logaddexp(0, logit) + np.logaddexp(0, -logit)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)


@pytest.mark.parametrize("layout", ["dense", "gather", "grid", "ring"])
def test_float32_embeddings_multiplied_in_bfloat16_keep_their_bars(oracle, layout):
    mesh, problem = oracle.mesh(2), oracle.problem(64, 128)
    found = oracle.run(make_loss("clip", mesh=mesh, layout=layout, dtype="bfloat16"), problem, mesh)
    assert {str(x.dtype) for x in (found[0], *found[2])} == {"float32"}
    loss, gradients = oracle.errors(found, oracle.reference("clip", *problem))
    assert 1e-7 < loss < 2e-3 and 1e-4 < max(gradients[:2]) < 1e-2, (loss, gradients)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("cpu", "tiles up to 1024, products of float32"),
        ("cuda", "tiles up to 4096, products of bfloat16"),
        ("tpu", "tiles up to 1024, products of bfloat16"),
    ],
)
def test_the_platform_decides_what_is_left_open(monkeypatch, backend, words):
    said = []
    monkeypatch.setattr(logging, "info", lambda message, *args: said.append(message % args))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, scale = jax.ShapeDtypeStruct((8192, 8), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    jax.eval_shape(make_loss("clip"), x, x, scale)
    assert words in said[0]
    jax.eval_shape(make_loss("clip", tile_size=64, dtype="float32"), x, x, scale)
    assert "tiles up to 64, products of float32" in said[1]


def test_a_mesh_says_its_platform_before_the_backend_does(monkeypatch, oracle):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mesh = oracle.mesh(2)
    assert platform_of() == platform_of(AbstractMesh((2,), ("data",))) == "tpu"
    assert platform_of(mesh) == platform_of(mesh.abstract_mesh) == "cpu"
    with jax.set_mesh(mesh):
        assert platform_of() == "cpu"
