"""FLOPs, traffic and collectives of programs that XLA's GPU compiler made (stored texts)."""

from pathlib import Path

import pytest

from clipjax.plan.chips import CHIPS
from clipjax.plan.collectives import Collective, Crossing, find_collectives
from clipjax.plan.flops import count_flops
from clipjax.plan.hlo import parse, walk
from clipjax.plan.roofline import link_seconds, network_bytes
from clipjax.plan.traffic import count_traffic

GOLDEN = Path(__file__).parent.parent / "golden" / "plan"
MESH, HOSTS = {"data": 2, "fsdp": 4}, [0] * 4 + [1] * 4
# The sizes of make_gpu_hlo.py: layers, examples of a device, width; bfloat16.
LAYERS, ROWS, WIDTH = 6, 512 // 8, 256


def read(name):
    module = parse((GOLDEN / f"{name}_h100_2x4.hlo").read_text(encoding="utf-8"))
    return module, list(walk(module))


def test_calls_of_cublas_are_counted_in_loops():
    _, visits = read("scan")
    flops = count_flops(visits)
    product = 2 * ROWS * WIDTH * WIDTH
    assert flops.by_part["forward"] == LAYERS * product
    assert flops.by_part["backward"] == 2 * LAYERS * product
    assert flops.kernels == {"__cublas$lt$matmul": (3 * LAYERS, 3 * LAYERS * product)}
    assert flops.uncounted == {}


def test_calls_of_cudnn_attention_are_two_products_and_five():
    _, visits = read("attention")
    flops = count_flops(visits)
    product = 2 * 12 * 200 * 200 * 64
    # Backwards four, and the scores once more.
    assert flops.by_part == {
        "forward": 2 * product, "backward": 4 * product, "recomputed": product, "loss": 0,
    }  # fmt: skip


def test_calls_of_cudnn_convolutions_are_one_product_each():
    _, visits = read("convolution")
    flops = count_flops(visits)
    product = 2 * 16 * 16 * 3 * 3 * 16 * 32
    assert flops.by_part["forward"] == product
    assert flops.by_part["backward"] == 2 * product


def test_a_kernel_that_states_nothing_is_named_and_one_that_states_is_counted():
    text = """\
HloModule m

ENTRY %main (a: bf16[8,8]) -> bf16[8,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  %b = bf16[8,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/attend/short_attention_forward/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"1234","transcendentals":"1","bytes_accessed":"9"}}}
  %c = bf16[8,8]{1,0} custom-call(%b), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/fused_loss/pallas_call"}, backend_config={grid_x = 1 : i32}
  ROOT %d = bf16[8,8]{1,0} custom-call(%c), custom_call_target="__cub$DeviceRadixSort"
}
"""  # noqa: E501
    flops = count_flops(walk(parse(text)))
    assert flops.kernels == {"short_attention_forward": (1, 1234.0)}
    assert flops.uncounted == {"fused_loss": 1}
    assert flops.total == 1234


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(step)/jvp()/shard_map/dot_general", "loss"),
        ("jit(step)/jvp(CLIP)/image_encoder/blocks/attention/shard_map/pallas_call", "forward"),
        ("jit(step)/transpose(jvp(CLIP))/blocks/attention/shard_map/pallas_call", "backward"),
        ("jit(step)/rematted_computation/blocks/attention/shard_map/pallas_call", "recomputed"),
    ],
)
def test_a_kernel_of_attention_in_a_shard_map_is_not_the_loss(op_name, part):
    text = f"""\
HloModule m

ENTRY %main (a: bf16[8,8]) -> bf16[8,8] {{
  %a = bf16[8,8]{{1,0}} parameter(0)
  ROOT %b = bf16[8,8]{{1,0}} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, metadata={{op_name="{op_name}"}}
}}
"""  # noqa: E501
    flops = count_flops(walk(parse(text)))
    assert flops.by_part[part] == flops.total == 2 * 8**3


def test_traffic_of_a_scanned_program():
    module, visits = read("scan")
    rows, weight = ROWS * WIDTH * 2, WIDTH * WIDTH * 2
    shard = weight // 4
    index = 4  # bytes of a loop's counter, which a slice reads
    forward = (
        (2 * shard + index) + (shard + weight)  # a layer's weights: out of the stack, gathered
        + (rows + weight + rows)  # the product, its workspace not
        + 2 * rows  # tanh
        + 3 * (2 * rows + index)  # three residuals into their stacks
    )  # fmt: skip
    backward = (
        2 * (2 * shard + index) + (shard + weight)
        + 2 * rows + 2 * rows + index  # the gradient through tanh, from two residuals
        + (2 * rows + weight) + (weight + shard) + 2 * shard  # weights: product, scatter, sum
        + (rows + weight + rows)  # of the layer below
        + (2 * shard + index)  # into the stack
    )  # fmt: skip
    counters = LAYERS * 4 * 8 + 2 * 8
    once = 4 * LAYERS * rows + 2 * rows + 2 * rows  # empty stacks; the ends
    assert count_traffic(module, visits).hbm == LAYERS * (forward + backward) + counters + once


ASYNCHRONOUS = """\
HloModule m

%fused (p0: f32[12,256], p1: s32[], p2: f32[256]) -> f32[12,256] {
  %p0 = f32[12,256]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[256]{0} parameter(2)
  %row = f32[1,256]{1,0} bitcast(%p2)
  %zero = s32[] constant(0)
  ROOT %put = f32[12,256]{1,0} dynamic-update-slice(%p0, %row, %p1, %zero)
}

ENTRY %main (a: f32[12,256], i: s32[], b: f32[256], w: f32[256,256]) -> f32[12,256] {
  %a = f32[12,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[256]{0} parameter(2)
  %w = f32[256,256]{1,0} parameter(3)
  %fusion-start = ((f32[12,256]{1,0}, s32[], f32[256]{0}), f32[12,256]{1,0}, u32[]) fusion-start(%a, %i, %b), kind=kLoop, calls=%fused
  %custom-call-start = ((f32[256,256]{1,0}, f32[256,256]{1,0}), (f32[256,256]{1,0}, s8[9999]{0}), u32[]) custom-call-start(%w, %w), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %custom-call-done = (f32[256,256]{1,0}, s8[9999]{0}) custom-call-done(%custom-call-start)
  ROOT %fusion-done = f32[12,256]{1,0} fusion-done(%fusion-start)
}
"""  # noqa: E501


def test_what_another_stream_runs_counts_once():
    """As newer compilers write it (JAX 0.11): started here, done there."""
    module = parse(ASYNCHRONOUS)
    visits = list(walk(module))
    assert count_flops(visits).total == 2 * 256**3
    row, square = 256 * 4, 256 * 256 * 4
    # A row into the stack, beside its index; a square read, a square written.
    assert count_traffic(module, visits).hbm == (2 * row + 4) + 2 * square


def test_collectives_within_a_host_and_between_hosts():
    module, visits = read("scan")
    found = find_collectives(module, visits, MESH, hosts=HOSTS)
    weight = WIDTH * WIDTH * 2
    rows = [(c.kind, c.crossing.label, c.crossing.hosts, c.times, c.bytes_received) for c in found]
    assert rows == [
        ("all-gather", "fsdp", 1, LAYERS, weight * 3 / 4),
        ("all-gather", "fsdp", 1, LAYERS, weight * 3 / 4),
        ("reduce-scatter", "fsdp", 1, LAYERS, weight * 3 / 4),
        ("all-reduce", "data", 2, LAYERS, weight / 4),
    ]


@pytest.mark.parametrize(
    ("kind", "size", "hosts", "network"),
    [
        ("all-reduce", 8, 1, 0),
        ("all-reduce", 2, 2, 1),  # one device a host: all of it
        ("all-reduce", 16, 2, (1 / 2) / (15 / 16) / 8),  # eight NICs share what the host needs
        ("all-gather", 256, 32, (31 / 32) / (255 / 256) / 8),
        ("all-to-all", 16, 2, (1 / 2) / (15 / 16)),  # a part of its own for each device
        ("collective-permute", 16, 2, 1),
    ],
)
def test_time_on_a_network(kind, size, hosts, network):
    collective = Collective(kind, Crossing("data", size, hosts=hosts), 3, 1e9, "step", "")
    assert network_bytes(collective) == pytest.approx(3e9 * network)
    for name in ("h100", "l4"):
        switches = CHIPS[name].interconnect
        seconds = max(3e9 / switches.host_bandwidth, 3e9 * network / switches.network_bandwidth)
        assert link_seconds(CHIPS[name], collective) == pytest.approx(seconds)
