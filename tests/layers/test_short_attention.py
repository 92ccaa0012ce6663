"""The kernel for short sequences: interpreted against JAX's plain attention, compiled by libtpu."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax import partitioning
from clipjax.layers import short_attention as short
from clipjax.layers import short_attention_blocks as blocks
from clipjax.layers import short_attention_kernels as kernels
from clipjax.layers.execution import Execution
from clipjax.layers.short_attention import short_attention, unsupported
from clipjax.layers.transformer import Attention, BlockConfig
from clipjax.models import MODELS
from clipjax.partitioning.boxes import boxed_axes, unbox, under_rules
from clipjax.partitioning.rules import LOGICAL_AXIS_RULES, spec_of
from clipjax.plan.collectives import find_collectives
from clipjax.plan.hlo import parse, walk

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # of the largest value


def plain(qkv, valid=None, causal=False):
    if valid is not None:
        if valid.ndim == 1:
            valid = jnp.arange(qkv.shape[1]) < valid[:, None]
        valid = jnp.broadcast_to(
            valid[:, None, None], (qkv.shape[0], 1, qkv.shape[1], qkv.shape[1])
        )
    query, key, value = (qkv[:, :, part] for part in range(3))
    return jax.nn.dot_product_attention(query, key, value, mask=valid, is_causal=causal)


def value_and_gradient(attend, qkv, cotangent):
    def both(qkv, cotangent):
        out, back = jax.vjp(attend, qkv)
        return out, back(cotangent)[0]

    return jax.jit(both)(qkv, cotangent)


def inputs(batch, length, heads, head_dim, dtype="float32"):
    shapes = (batch, length, 3, heads, head_dim), (batch, length, heads, head_dim)
    keys = jax.random.split(jax.random.key(length))
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def errors(shape, *, dtype="float32", causal=False, valid=None, kernel=short_attention):
    """Of the result and of the gradient, as a share of their largest value."""
    arrays = inputs(*shape, dtype)
    # Both from the same rounded inputs; the plain path in float32 is the truth of bfloat16, too.
    exact = [x.astype("float32") for x in arrays]
    wanted = value_and_gradient(functools.partial(plain, valid=valid, causal=causal), *exact)
    found = value_and_gradient(
        functools.partial(kernel, valid=valid, causal=causal, interpret=True), *arrays
    )
    assert [x.dtype for x in found] == [dtype, dtype]
    pairs = zip(found, wanted, strict=True)
    return np.array([abs(x.astype("float32") - w).max() / abs(w).max() for x, w in pairs])


PREFIXES = np.array([37, 1, 0])
MASK = (np.arange(3 * 37).reshape(3, 37) % 5 < 3) & (np.arange(3) < 2)[:, None]


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        # The last row has no keys.
        ((3, 37, 1, 24), {"valid": MASK, "causal": True, "dtype": "bfloat16"}),
        # Two groups of heads; heads of no common lanes.
        pytest.param((5, 13, 4, 64), {"causal": True}, marks=pytest.mark.slow),
        pytest.param((3, 37, 2, 24), {"valid": PREFIXES}, marks=pytest.mark.slow),
        pytest.param((1, 1, 1, 4), {"dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_path(shape, more):
    if "valid" in more:
        more = {**more, "valid": jnp.asarray(more["valid"])}
    assert errors(shape, **more).max() < TOLERANCE[more.get("dtype", "float32")]


def test_rows_in_chunks_of_queries_in_blocks_of_images(monkeypatch):
    """Two whole chunks and a rest; three blocks of images, of which the last has fewer."""
    monkeypatch.setattr(blocks, "WHOLE_ROW", 16)
    monkeypatch.setattr(blocks, "CHUNKS", (16,))
    monkeypatch.setattr(blocks, "MOST_IMAGES", 2)
    found = blocks.make_blocks("backward", 5, 37, 2, 16, 4, blocks.vmem_of(None))
    assert (found.images, found.queries) == (2, 16)
    shape, valid = (5, 37, 2, 16), jnp.array([37, 20, 0, 1, 36])
    assert errors(shape, causal=True, valid=valid).max() < TOLERANCE["float32"]


def test_no_chunk_of_queries_is_a_single_one():
    """Mosaic does not compile one, as of 1,025 and 2,305 tokens (OpenVision) in chunks of 256."""
    for length in range(385, 4200):
        cut = blocks.make_blocks("forward", 64, length, 2, 64, 2, blocks.vmem_of("TPU v5 lite"))
        assert cut is not None and length % cut.queries != 1
        assert cut.queries % 16 == 0  # whole registers of bfloat16
    assert cut.queries == 256


def test_many_heads_written_out_have_room_for_what_a_compiler_spills():
    """libtpu wants 16.7 MiB for the backward pass of 16 heads of 88 on a v6e."""
    cut = blocks.make_blocks("backward", 64, 257, 16, 88, 2, blocks.vmem_of("TPU v6 lite"))
    assert cut.heads_a_group == 16 and 17 << 20 < cut.vmem_bytes < 24 << 20


def test_a_wrong_kernel_is_caught(monkeypatch):
    """Negative control: a head that is left out."""
    heads = kernels.heads_of
    monkeypatch.setattr(kernels, "heads_of", lambda blocks: heads(blocks)[:1] * 2)
    assert np.isnan(errors((2, 14, 2, 16))).all(), "what is not written is no number"


@pytest.mark.slow
def test_a_mask_that_is_ignored_is_caught():
    def without(qkv, valid, **other):
        return short_attention(qkv, **other)

    assert errors((2, 13, 1, 16), valid=jnp.array([5, 13]), kernel=without).min() > 0.1


TOWERS = [spec[side] for spec in MODELS.values() for side in ("image", "text")]
HEAD_DIMS = sorted({t["width"] // t["num_heads"] for t in TOWERS if "mlp_dim" in t})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["", "lengths", "mask"])
@pytest.mark.parametrize("length", [50, 99, 197, 450])  # 99: half of 196 patches and a class token
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dim_of_the_zoo(head_dim, length, masked, causal, dtype):
    valid = {
        "": None,
        "lengths": jnp.array([length, 3, 0]),
        "mask": jnp.arange(3 * length).reshape(3, length) % 7 < 3,
    }[masked]
    found = errors((3, length, 2, head_dim), dtype=dtype, causal=causal, valid=valid)
    assert found.max() < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("shape", "dtype", "platform", "message"),
    [
        ((8, 197, 3, 12, 64), "bfloat16", "gpu", "for TPUs, not for gpu"),
        ((8, 197, 3, 12, 64), "float16", "tpu", "takes float32 and bfloat16"),
        ((8, 197, 2, 12, 64), "bfloat16", "tpu", "expected [batch, length, 3, heads, head_dim]"),
        ((0, 197, 3, 12, 64), "bfloat16", "tpu", "nothing to attend to"),
        ((8, 8192, 3, 12, 64), "bfloat16", "tpu", "8192 tokens and 12 heads of 64"),
    ],
)
def test_what_the_kernel_is_not_for_is_said(shape, dtype, platform, message):
    assert message in unsupported(shape, dtype, platform)
    if platform == "tpu":
        with pytest.raises(ValueError, match="short_attention: "):
            jax.eval_shape(short_attention, jax.ShapeDtypeStruct(shape, dtype))


def test_memory_decides_by_the_kind_of_the_chip():
    shape = (8, 730, 3, 16, 80)
    assert unsupported(shape, "bfloat16", "tpu", "TPU v5 lite") is None
    assert "16 MiB that a core of TPU v4 has" in unsupported(shape, "bfloat16", "tpu", "TPU v4")
    assert "an unknown TPU" in unsupported(shape, "bfloat16", "tpu")


@pytest.mark.parametrize(
    ("heads", "head_dim", "table", "message"),
    [
        (16, 72, "fsdp", None),
        (16, 72, "tensor", "a device has 8 heads of 72, and the kernel takes them by 16"),
        (4, 64, "tensor", None),
        (6, 64, "tensor", "a device has 3 heads of 64, and the kernel takes them by 2"),
        (6, 64, "fsdp", None),
        (3, 64, "fsdp", "a device has 3 heads of 64"),
    ],
)
def test_the_heads_of_a_device_fill_whole_lanes(heads, head_dim, table, message):
    """Others do not compile: Mosaic wants what it loads to lie at whole registers."""
    mesh = partitioning.make_mesh(MESHES[table])
    with jax.set_mesh(mesh), under_rules(LOGICAL_AXIS_RULES[table].params):
        reason = unsupported((8, 50, 3, heads, head_dim), "bfloat16", "tpu", "TPU v5 lite")
    assert reason is None if message is None else message in reason


# --- Under a mesh --------------------------------------------------------------------------------

MESHES = {
    "replicated": {"data": 2, "fsdp": 4},
    "zero1": {"data": 2, "fsdp": 4},
    "fsdp": {"data": 2, "fsdp": 4},
    "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}


def layer_collectives(table, attention):
    """Collectives of a layer's gradients under a table: how often each kind moves which bytes."""
    rules, mesh = LOGICAL_AXIS_RULES[table].params, partitioning.make_mesh(MESHES[table])
    execution = Execution(platform="tpu", attention=attention)
    config = BlockConfig(
        depth=1, num_heads=4, mlp_dim=8, activation="gelu", layer_norm_eps=1e-5,
        execution=execution,
    )  # fmt: skip
    layer = Attention(config)
    x = jax.ShapeDtypeStruct((16, 5, 256), jnp.float32)
    boxed = jax.eval_shape(layer.init, jax.random.key(0), x)
    shapes, axes = unbox(boxed), boxed_axes(boxed)

    def sharded(leaf, spec):
        spec = spec_of(spec, leaf.shape, rules, mesh)
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def loss(params, x, valid):
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        return (layer.apply(params, x, valid) ** 2).sum()

    params = jax.tree.map(sharded, shapes, axes)
    batch = [sharded(a, ("batch",)) for a in (x, jax.ShapeDtypeStruct((16,), jnp.int32))]
    with jax.set_mesh(mesh), under_rules(rules):
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
        text = gradients.lower(params, *batch).compile().as_text()
    module = parse(text)
    found = find_collectives(module, walk(module), dict(mesh.shape))
    return Counter((c.kind, c.crossing.label, c.total_bytes) for c in found)


@pytest.mark.parametrize(
    "table",
    [x if x == "tensor" else pytest.param(x, marks=pytest.mark.slow) for x in MESHES],
)
def test_the_kernel_adds_no_collective(table):
    wanted, found = layer_collectives(table, "xla"), layer_collectives(table, "pallas")
    assert found == wanted
    assert wanted, "the gradients are summed, whichever way"


def test_a_kernel_that_gathers_is_caught(monkeypatch):
    """Negative control: every device attends for the whole batch."""
    monkeypatch.setattr(short, "spec_in_force", lambda *_: jax.sharding.PartitionSpec())
    assert "all-gather" in {kind for kind, *_ in layer_collectives("replicated", "pallas")}


# --- Compiled for TPUs that are not here ----------------------------------------------------------

CHIPS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def row(spec, side):
    """Tokens of a tower's rows, an image's with the class token; heads and their dim."""
    tower = spec[side]
    length = tower.get("context_length")
    if side == "image":
        size = spec["image_size"] // tower["patch_size"]
        length = size**2 + (tower.get("pooling") in ("cls", "patch_mean"))
    return length, tower["num_heads"], tower["width"] // tower["num_heads"]


def heads_fill_lanes(row):
    return row[1] % blocks.heads_of_whole_lanes(row[2]) == 0


SIDES = [(spec, side) for spec in MODELS.values() for side in ("image", "text")]
ROWS = {row(spec, side) for spec, side in SIDES if "mlp_dim" in spec[side]}
# The longest and the shortest rows of each head dim, and the longest of all.
CORNERS = {
    edge(row for row in ROWS if row[2] == dim and row[0] <= 730)
    for dim in HEAD_DIMS
    for edge in (min, max)
} | {max(row for row in ROWS if heads_fill_lanes(row))}


def compile_for(chip, row, which, *, dtype="bfloat16", masked=None):
    """Compiles one kernel for one chip; whether `unsupported` refuses the row instead."""
    pytest.importorskip("libtpu")
    from clipjax.plan import make_topology

    device = make_topology(CHIPS[chip]).devices[0]
    length, heads, head_dim = row
    shape = (64, length, 3, heads, head_dim)
    if unsupported(shape, dtype, "tpu", device.device_kind) is not None:
        return False
    sharding = jax.sharding.SingleDeviceSharding(device)
    cut = blocks.make_blocks(
        which, *shape[:2], heads, head_dim, jnp.dtype(dtype).itemsize,
        blocks.vmem_of(device.device_kind),
    )  # fmt: skip
    width = heads * head_dim

    def of(shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    valids = {"keys": of((64, length), bool), "lengths": of((64,), jnp.int32)}
    valid = valids.get(masked)
    arrays = [of((64, length, 3 * width)), valid]
    arrays += [of((64, length, width))] if which == "backward" else []
    kernel = getattr(kernels, which)
    run = jax.jit(functools.partial(kernel, blocks=cut, causal=bool(masked), interpret=False))
    text = run.lower(*arrays).compile().as_text()
    assert f"short_attention_{which}" in text
    assert f'"flops":"{blocks.attention_flops(64, length, heads, head_dim)[which]}"' in text
    return True


@pytest.mark.tpu
def test_heads_beside_the_lanes_are_refused_and_would_not_compile(monkeypatch):
    assert not compile_for("v5e", (17, 2, 16), "forward")
    monkeypatch.setitem(globals(), "unsupported", lambda *_: None)
    with pytest.raises(Exception, match="Mosaic failed to compile"):
        compile_for("v5e", (17, 2, 16), "forward")


@pytest.mark.tpu
@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("row", sorted(CORNERS))
@pytest.mark.parametrize("chip", CHIPS)
def test_the_zoos_rows_compile_within_a_cores_memory(chip, row, which):
    compiled = compile_for(chip, row, which)
    assert compiled or chip == "v4", "only the 16 MiB of a v4's core are too few"


@pytest.mark.tpu
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_masks_and_float32_compile(which):
    assert compile_for("v5e", (77, 12, 64), which, masked="keys")
    assert compile_for("v5e", (64, 16, 72), which, dtype="float32")


@pytest.mark.tpu
@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("chip", CHIPS)
def test_lengths_compile(chip, which):
    """As NaFlex has them, scalars in front of the kernel; none of its rows fits a v4's core."""
    assert compile_for(chip, (256, 12, 64), which, masked="lengths") or chip == "v4"


@pytest.mark.tpu
@pytest.mark.nightly
@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("row", sorted(ROWS - CORNERS))
@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_not_refused_compiles(chip, row, which):
    """`auto` takes the kernel for every row of the zoo that `unsupported` has nothing against."""
    if not compile_for(chip, row, which):
        pytest.skip("refused: XLA attends")
