"""Embeddings in bfloat16 on a CPU: float32 products, the same numbers up to their rounding."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import inputs, model_and_params, tiny_spec

from clipjax.encoding.compiled import CompiledFn
from clipjax.encoding.encode_fns import make_encode_fns
from clipjax.inference import Model
from clipjax.inference import model as model_module
from clipjax.models import build_model


def float32_products(encode, variables, rows):
    """How many products of bfloat16 matrices are float32 in a program; of its scan's body, once."""
    found = []

    def read(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                factor, result = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
                found.append(factor == jnp.bfloat16 and result == jnp.float32)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                read(inner)

    read(jax.make_jaxpr(encode)(variables, rows).jaxpr)
    return sum(found)


@pytest.mark.parametrize("what", ["image", "text"])
def test_products_of_bfloat16_are_float32_on_a_cpu(what):
    spec = tiny_spec(image={"pooling": "patch_mean"}, text={"pooling": "mean"})
    plain, params = model_and_params(spec)
    model, variables = build_model(spec, dtype="bfloat16"), {"params": params}
    images, tokens = inputs(spec, 3)
    pixels = np.random.default_rng(0).integers(0, 255, images.shape).astype(np.uint8)
    rows = pixels if what == "image" else tokens
    exact = jax.jit(getattr(make_encode_fns(plain, spec["preprocess"]), what))(variables, rows)
    errors, counts = {}, {}
    for platform in ("cpu", "gpu"):
        fns = make_encode_fns(model, spec["preprocess"], dtype="bfloat16", platform=platform)
        encode = getattr(fns, what)
        counts[platform] = float32_products(encode, variables, rows)
        found = jax.jit(encode)(variables, rows).astype(jnp.float32)
        errors[platform] = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
    # A block's four kernels; its attention's scores are float32 on every platform.
    assert (counts["gpu"], counts["cpu"]) == (1, 5)
    assert 1e-5 < errors["cpu"] < 5e-2  # of a width of 16, rounded to 8 bits a layer
    assert errors["cpu"] < 1.5 * errors["gpu"]


def test_tokens_take_them_too(monkeypatch):
    spec = tiny_spec(image={"pooling": "patch_mean"})
    variables = {"params": model_and_params(spec)[1]}
    images, tokens = inputs(spec, 1)
    pixels, made = np.zeros(images.shape, np.uint8), []

    def compiled(function, mesh):
        made.append(function)
        return CompiledFn(function, mesh)

    monkeypatch.setattr(model_module, "CompiledFn", compiled)
    for dtype in ("float32", "bfloat16"):
        model = Model(spec, variables, dtype=dtype, tokenizer=lambda _: tokens)
        model.image_tokens(pixels)
        model.text_tokens(["a cat"])
        counts = [float32_products(made.pop(0), variables, rows) for rows in (pixels, tokens)]
        assert counts == ([5, 5] if dtype == "bfloat16" else [0, 0])
