"""One function attends: what it is, what it masks, and which implementation it takes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.layers.attention import attend, choose
from clipjax.layers.execution import Execution

LENGTHS = np.array([7, 3], np.int32)
MASKS = {
    "all": None,
    "lengths": LENGTHS,
    "keys": np.array([[1, 0, 1, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0, 0]], bool),
}


def qkv_of(dtype=np.float32, length=7, head_dim=4):
    values = np.random.default_rng(3).standard_normal((2, length, 3, 2, head_dim))
    return jnp.asarray(values.astype(np.float32)).astype(dtype)


def formula(qkv, valid, causal, query=None):
    query = qkv[:, :, 0] if query is None else query
    key, value = qkv[:, :, -2], qkv[:, :, -1]
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * qkv.shape[-1] ** -0.5
    seen = np.ones(scores.shape, bool)
    if valid is not None:
        keys = np.arange(qkv.shape[1]) < valid[:, None] if valid.ndim == 1 else valid
        seen &= keys[:, None, None]
    if causal:
        seen &= np.tril(np.ones(scores.shape[2:], bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30).astype(jnp.float32), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def rows_that_count(causal, valid):
    """Queries that see a key: the others' values mean nothing."""
    if valid is None:
        return np.ones((2, 7), bool)
    keys = np.arange(7) < valid[:, None] if valid.ndim == 1 else valid
    if not causal:
        return np.broadcast_to(keys.any(1, keepdims=True), (2, 7))
    return np.cumsum(keys, axis=1) > 0


@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_values_and_gradients_are_those_of_the_formula(mask, causal, dtype, atol):
    qkv, valid = qkv_of(dtype), MASKS[mask]
    counts = rows_that_count(causal, valid)[:, :, None, None]

    def sums(function):
        def loss(qkv):
            out = jnp.where(counts, function(qkv), 0).astype(jnp.float32)
            return (out**2).sum(), out

        return jax.jit(jax.grad(loss, has_aux=True))(qkv)

    device = None if valid is None else jnp.asarray(valid)
    found = sums(lambda qkv: attend(qkv, device, is_causal=causal))
    wanted = sums(lambda qkv: formula(qkv, valid, causal))
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.float32(f), np.float32(w), atol=2 * atol, rtol=atol)
    # Negative control: another mask gives other values.
    other = sums(lambda qkv: formula(qkv, np.array([2, 2], np.int32), not causal))
    assert np.abs(np.float32(found[1]) - np.float32(other[1])).max() > 0.1


def test_queries_of_their_own_attend_to_the_keys():
    qkv, query = qkv_of(), qkv_of()[:, :1, 0] + 1
    found = attend(qkv[:, :, 1:], jnp.asarray(LENGTHS), query=query)
    np.testing.assert_allclose(found, formula(qkv, LENGTHS, False, query), atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "asked", "dtype", "head_dim", "expected"),
    [
        ("cpu", "auto", jnp.bfloat16, 64, "xla"),
        ("gpu", "auto", jnp.bfloat16, 64, "cudnn"),
        ("gpu", "auto", jnp.float32, 64, "xla"),
        ("gpu", "auto", jnp.bfloat16, 136, "xla"),
        ("gpu", "auto", jnp.bfloat16, 20, "xla"),
        ("gpu", "xla", jnp.bfloat16, 64, "xla"),
        ("gpu", "cudnn", jnp.bfloat16, 72, "cudnn"),
        ("gpu", "cudnn", jnp.float32, 64, "cuDNN computes in bfloat16 or float16, not in float32"),
        ("gpu", "cudnn", jnp.bfloat16, 136, "a multiple of 8, up to 128; these have 136"),
        ("cpu", "cudnn", jnp.bfloat16, 64, "cuDNN runs on GPUs, and the devices are of the plat"),
        ("gpu", "pallas", jnp.bfloat16, 64, "'auto' takes what there is"),
        ("tpu", "auto", jnp.bfloat16, 72, "pallas"),
        ("tpu", "auto", jnp.float16, 64, "xla"),
        ("tpu", "auto", jnp.bfloat16, 4, "xla"),
        ("tpu", "pallas", jnp.bfloat16, 4, "has 16 heads of 4, and the kernel takes them by 32"),
        ("tpu", "pallas", jnp.float16, 64, "the kernel takes float32 and bfloat16"),
        ("gpu", "flash", jnp.bfloat16, 64, "allowed are auto, xla, cudnn, pallas"),
    ],
)
def test_what_is_taken_follows_from_platform_and_shapes(platform, asked, dtype, head_dim, expected):
    qkv = jax.ShapeDtypeStruct((2, 7, 3, 16, head_dim), dtype)
    execution = Execution(platform=platform, attention=asked)
    if expected in ("xla", "cudnn", "pallas"):
        assert choose(qkv, execution=execution) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            choose(qkv, execution=execution)


@pytest.mark.gpu
@pytest.mark.parametrize(("length", "mask"), [(197, None), (77, "causal"), (50, 1), (77, 2)])
def test_cudnn_takes_odd_lengths_and_masks_forwards_and_backwards(length, mask):
    """Compiled for an H100 that is not there; its numbers wait for one."""
    from clipjax.partitioning import make_mesh, replicated
    from clipjax.plan import gpu
    from clipjax.plan.topology import make_topology

    topology = make_topology("h100:1")
    mesh = make_mesh({"data": 1}, topology.devices)
    qkv = jax.ShapeDtypeStruct((4, length, 3, 2, 64), jnp.bfloat16, sharding=replicated(mesh))
    valid = None
    if mask in (1, 2):
        shape, dtype = ((4,), jnp.int32) if mask == 1 else ((4, length), bool)
        valid = jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    def loss(qkv, valid):
        execution = Execution(platform="gpu", attention="cudnn")
        out = attend(qkv, valid, is_causal=mask == "causal", execution=execution)
        assert out.shape == (4, length, 2, 64)
        return (out.astype(jnp.float32) ** 2).sum()

    with gpu.answering_for(topology.chip), jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss)).trace(qkv, valid).lower(lowering_platforms=("cuda",))
        text = lowered.compile(gpu.COMPILER_OPTIONS).as_text()
    assert text.count('custom_call_target="__cudnn$fmha') == 2


@pytest.mark.gpu
@pytest.mark.parametrize("masked", ["lengths", "keys"])
@pytest.mark.parametrize("table", ["replicated", "zero1", "fsdp", "tensor"])
def test_cudnn_on_several_gpus_masks_the_rows_that_each_has(table, masked):
    """Also where the masks come whole to every GPU: JAX's call does not shard them by itself."""
    from clipjax import partitioning
    from clipjax.partitioning.boxes import under_rules
    from clipjax.partitioning.rules import LOGICAL_AXIS_RULES, spec_of
    from clipjax.plan import gpu
    from clipjax.plan.topology import make_topology

    axes = {"tensor": {"data": 2, "fsdp": 2, "tensor": 2}}.get(table, {"data": 2, "fsdp": 4})
    topology = make_topology("h100:8")
    mesh, rules = (
        partitioning.make_mesh(axes, topology.devices), LOGICAL_AXIS_RULES[table].params
    )  # fmt: skip
    spec = spec_of(("batch", None, None, None, None), (16, 50, 3, 4, 64), rules, mesh)
    qkv = jax.ShapeDtypeStruct(
        (16, 50, 3, 4, 64), jnp.bfloat16, sharding=jax.sharding.NamedSharding(mesh, spec)
    )
    shape, dtype = ((16,), jnp.int32) if masked == "lengths" else ((16, 50), bool)
    valid = jax.ShapeDtypeStruct(shape, dtype, sharding=partitioning.replicated(mesh))

    def loss(qkv, valid):
        out = attend(qkv, valid, execution=Execution(platform="gpu", attention="cudnn"))
        return (out.astype(jnp.float32) ** 2).sum()

    with gpu.answering_for(topology.chip), jax.set_mesh(mesh), under_rules(rules):
        lowered = jax.jit(jax.grad(loss)).trace(qkv, valid).lower(lowering_platforms=("cuda",))
        text = lowered.compile(gpu.COMPILER_OPTIONS).as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="__cudnn$fmha' in line]
    assert len(calls) == 2
    rows = 16 // (mesh.size // axes.get("tensor", 1))
    operands = r"s32\[(\d+)\]" if masked == "lengths" else r"bf16\[(\d+),1,56,56\]"
    for call in calls:
        found = re.findall(operands, call.split(" custom-call(")[1])
        assert {int(x) for x in found} == {rows}
