"""Embeddings and tokens in bfloat16 take their platform's attention kernel, on every device for its
rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import inputs, model_and_params, tiny_spec

from clipjax.encoding import compiled, encode_fns
from clipjax.encoding.compiled import CompiledFn, EmbedFn
from clipjax.encoding.encode_fns import make_encode_fns
from clipjax.inference.tokens import EncodeTokens
from clipjax.layers.execution import PLAIN, Execution
from clipjax.models import build_model
from clipjax.partitioning import batch_sharding, make_mesh, replicated

WIDE = {"width": 128, "num_heads": 2}  # heads that fill the lanes of a TPU
SIDES = ["image", "text", "tokens"]  # the last are an image tower's, of its second block


def spec_and_rows(side):
    spec = tiny_spec(image=WIDE, text=WIDE)
    images, tokens = inputs(spec, 16)
    pixels = np.random.default_rng(0).integers(0, 255, images.shape).astype(np.uint8)
    return spec, tokens if side == "text" else pixels


def embed_fn(side, spec, mesh, **options):
    """A tower's pure function, and compiled for a mesh."""
    dtype, execution = options.get("dtype", "bfloat16"), options.get("execution", PLAIN)
    model = build_model(spec, dtype=dtype, execution=execution)
    if side == "tokens":
        which = {"final_norm": True, "preprocess": spec["preprocess"]}
        tokens = EncodeTokens(model, "image", 2, **which, dtype=dtype)
        return tokens, CompiledFn(tokens, mesh)
    fns = make_encode_fns(model, spec["preprocess"], dtype=dtype, platform="tpu")
    return getattr(fns, side), EmbedFn(getattr(fns, side), mesh)


def on_a_mesh(side, mesh, **options):
    """The traced program and what it is called with, on CPUs."""
    spec, rows = spec_and_rows(side)
    params = jax.tree.map(lambda leaf: 0.3 * leaf, model_and_params(spec)[1])
    pure, embed = embed_fn(side, spec, mesh, **options)
    assert "pallas_call" not in str(jax.make_jaxpr(pure)({"params": params}, rows))
    rows = jax.device_put(rows, batch_sharding(mesh))
    variables = jax.device_put({"params": params}, replicated(mesh))
    return embed, embed.trace(variables, rows), (variables, rows)


@pytest.mark.parametrize(
    "side", ["text", *(pytest.param(x, marks=pytest.mark.slow) for x in ("image", "tokens"))]
)
def test_the_kernels_embeddings_are_those_of_the_plain_path(side, monkeypatch):
    mesh, found = make_mesh({"data": 2, "fsdp": 4}), {}
    for dtype in ("float32", "bfloat16"):
        embed, traced, arguments = on_a_mesh(side, mesh, dtype=dtype)
        assert "pallas_call" not in str(traced.jaxpr), "a CPU has no kernel"
        found[dtype] = np.asarray(embed(*arguments))
    monkeypatch.setattr(encode_fns, "platform_of", lambda mesh: "tpu")
    embed, traced, arguments = on_a_mesh(side, mesh)
    assert "pallas_call" in str(traced.jaxpr)
    found["kernel"] = np.asarray(embed(*arguments))
    of_kernel, of_plain = (
        np.linalg.norm(found[name] - found["float32"], axis=-1).max()
        for name in ("kernel", "bfloat16")
    )
    length = np.linalg.norm(found["float32"], axis=-1).min()  # 1 of embeddings
    assert 0 < of_kernel < 1.5 * of_plain < 0.1 * length
    # Who asks for float32, or for XLA, has the plain path; a run's towers have their own.
    plain = [{"dtype": "float32"}, {"execution": Execution(attention="xla")}]
    plain += [{"execution": Execution(platform="tpu", attention="xla")}]
    for options in plain:
        assert "pallas_call" not in str(on_a_mesh(side, mesh, **options)[1].jaxpr)
    # A device that the kernel is not for, as an old GPU.
    monkeypatch.setattr(encode_fns, "attention_on", lambda *_: "xla")
    assert "pallas_call" not in str(on_a_mesh(side, mesh)[1].jaxpr)


@pytest.mark.parametrize("ruled", [True, False])
def test_each_device_attends_with_its_own_rows(ruled, monkeypatch):
    """The negative control has rules that leave the batch whole."""
    monkeypatch.setattr(encode_fns, "platform_of", lambda mesh: "tpu")
    if not ruled:
        monkeypatch.setattr(compiled, "RULES", (("batch", None),))
    traced = on_a_mesh("image", make_mesh({"data": 2, "fsdp": 4}))[1]
    assert ("all-gather" in traced.lower().compile().as_text()) is not ruled


def traced_for(topology, side):
    """The program for devices that are not here."""
    from clipjax.plan.topology import make_topology

    devices = make_topology(topology).devices
    mesh = make_mesh({"data": len(devices)}, devices)
    spec, rows = spec_and_rows(side)
    params = jax.eval_shape(lambda: model_and_params(spec)[1])

    def whole(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    variables = jax.tree.map(lambda leaf: whole(leaf, replicated(mesh)), {"params": params})
    embed = embed_fn(side, spec, mesh)[1]
    return embed.trace(variables, whole(rows, batch_sharding(mesh)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_inside_of_other_programs_and_under_other_rules(dtype):
    """Prompts in a loss of one's own, rules of a mesh of one's own: the same numbers.

    Of all tokens: in bfloat16 one token alone is rounded by each program in its own way.
    """
    rows = spec_and_rows("text")[1]
    spec = tiny_spec(image=WIDE, text={**WIDE, "pooling": "mean"})
    mesh = make_mesh({"data": 8})
    embed = embed_fn("text", spec, mesh, dtype=dtype)[1]
    rows, variables = np.asarray(rows), {"params": model_and_params(spec)[1]}
    alone = np.asarray(embed(variables, rows))

    def loss(x):
        return (embed(variables, rows) * x).sum()

    given = jnp.ones(alone.shape)
    # By XLA's default products: options of a compiler are of the outermost program.
    np.testing.assert_allclose(jax.grad(loss)(given), alone, rtol=0, atol=2e-6)
    np.testing.assert_allclose(jax.jit(loss)(given), alone.sum(), rtol=1e-5)
    with nn.logical_axis_rules((("batch", "dp"), ("embed", "mp"))):
        np.testing.assert_array_equal(embed(variables, rows), alone)


COLLECTIVES = re.compile("all-(gather|reduce|to-all)|collective-permute")


@pytest.mark.tpu
@pytest.mark.parametrize("side", SIDES)
def test_tpus_attend_by_the_kernel_without_a_collective(side):
    pytest.importorskip("libtpu", reason="the compiler of absent TPUs comes with [tpu]")
    text = traced_for("v5e:2x4", side).lower().compile().as_text()
    assert "short_attention_forward" in text
    assert not COLLECTIVES.search(text)


@pytest.mark.gpu
@pytest.mark.parametrize("side", SIDES)
def test_gpus_attend_by_cudnn_without_a_collective(side):
    from clipjax.plan import gpu
    from clipjax.plan.topology import make_topology

    with gpu.answering_for(make_topology("h100:8").chip):
        lowered = traced_for("h100:8", side).lower(lowering_platforms=("cuda",))
    text = lowered.compile(gpu.COMPILER_OPTIONS).as_text()
    assert "__cudnn$fmha" in text
    assert not COLLECTIVES.search(text)
