"""Device groups in every notation; kinds, runs, bytes and axes of programs of known traffic."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from clipjax.plan.chips import CHIPS
from clipjax.plan.collectives import crossing, find_collectives, groups_of
from clipjax.plan.hlo import Instruction, parse, walk
from clipjax.plan.roofline import link_seconds

GOLDEN = Path(__file__).parent.parent / "golden" / "plan"
MESH = {"data": 4, "fsdp": 2}
DATA = [[0, 2, 4, 6], [1, 3, 5, 7]]


def instruction(attributes):
    return Instruction("c", (), "all-gather", (), attributes, False)


@pytest.mark.parametrize(
    ("notation", "groups"),
    [
        ("{{0,2,4,6},{1,3,5,7}}", DATA),
        ("[2,4]<=[4,2]T(1,0)", DATA),
        ("[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("[1,8]<=[8]", [list(range(8))]),
        ("{}", [list(range(8))]),
        ("mesh['a'=4,'b'=2] {'a'}", DATA),
        ("mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'c'}", DATA),
        ("mesh['a'=4,'b'=2] {'a','b'}", [list(range(8))]),
    ],
)
def test_groups(notation, groups):
    found = groups_of(
        instruction(f"channel_id=3, replica_groups={notation}, use_global_device_ids=true"), 8
    )
    assert found.tolist() == groups


def test_an_unknown_notation_is_an_error():
    with pytest.raises(ValueError, match="unknown notation"):
        groups_of(instruction("replica_groups=tree(1,2), dimensions={0}"), 8)


def test_replica_ids_with_a_channel_are_everyone():
    assert groups_of(instruction("channel_id=1, replica_groups={{0}}"), 8).shape == (1, 8)


def test_axes_are_named():
    assert crossing(np.array(DATA), MESH).label == "data"
    assert crossing(np.arange(8)[None], MESH).label == "data,fsdp"
    assert crossing(np.array([[0, 2], [4, 6]]), MESH).label == "data:2"
    ring = np.array([[i, (i + 2) % 8] for i in range(8)])
    assert crossing(ring, MESH, is_permutation=True).label == "data"


def test_the_torus_axes_that_a_group_spans():
    coords = [(i // 2, i % 2, 0) for i in range(8)]
    assert crossing(np.array(DATA), MESH, coords).torus_axes == 1
    assert crossing(np.arange(8)[None], MESH, coords).torus_axes == 2


def test_collectives_of_a_cpu_program_of_known_traffic():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def local(x):  # [8, 128] float32 on each device
        def body(total, _):
            return lax.psum(total, "fsdp") * 0.5, None

        x = lax.scan(body, x, None, length=5)[0]
        gathered = lax.all_gather(x, "data", tiled=True)
        scattered = lax.psum_scatter(gathered * gathered, "data", tiled=True)
        return lax.ppermute(scattered, "data", [(i, (i + 1) % 4) for i in range(4)])

    spec = PartitionSpec(("data", "fsdp"))
    step = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    module = parse(jax.jit(step).lower(jnp.zeros((64, 128))).compile().as_text())
    found = {
        c.kind: (c.crossing.label, c.times, c.bytes_received)
        for c in find_collectives(module, walk(module), MESH)
    }
    size = 8 * 128 * 4
    assert found == {
        "all-reduce": ("fsdp", 5, size),
        "all-gather": ("data", 1, 3 * size),
        "reduce-scatter": ("data", 1, 3 * size),
        "collective-permute": ("data", 1, size),
    }


def test_collectives_of_fsdp_on_tpu():
    """Six layers: weights gathered forward and backward, gradients scattered in a fusion."""
    text = (GOLDEN / "fsdp_scan_v5e_4x4.hlo").read_text(encoding="utf-8")
    module = parse(text)
    found = find_collectives(module, walk(module), {"data": 4, "fsdp": 4})
    weight = 1024 * 1024 * 2
    rows = sorted((c.kind, c.crossing.label, c.times, c.bytes_received) for c in found)
    assert rows == [
        ("all-gather", "fsdp", 6, weight * 3 // 4),
        ("all-gather", "fsdp", 6, weight * 3 // 4),
        ("all-reduce", "data", 6, 2 * weight // 4 * 3 / 4),
        ("all-reduce", "data,fsdp", 1, 2 * 4 * 15 / 16),
        ("reduce-scatter", "fsdp", 6, weight * 3 / 4),
    ]
    # Without its name the fused reduce-scatter is read as the all-reduce that it holds: twice.
    renamed = parse(text.replace("all-reduce-scatter", "fused_computation"))
    kinds = [c.kind for c in find_collectives(renamed, walk(renamed), {"data": 4, "fsdp": 4})]
    assert "reduce-scatter" not in kinds


def test_gradients_are_summed_in_a_slice_before_they_leave_it():
    """And shares are gathered between slices first: each sends a fourth, or its eighth."""
    module = parse((GOLDEN / "slices_v5e_2x2x2slices.hlo").read_text(encoding="utf-8"))
    found = find_collectives(module, walk(module), {"data": 4}, num_slices=2)
    weight = 1024 * 1024 * 2
    rows = {(c.kind, c.crossing.label): c.times * c.bytes_received for c in found}
    assert rows.pop(("collective-permute", "data"), 0) < weight / 16  # of a share's edges
    assert rows == {
        ("reduce-scatter", "data"): pytest.approx(weight * 3 / 4, rel=0.05),
        ("all-reduce", "slices"): weight / 4,
        ("all-gather", "slices"): weight / 8,
        ("all-gather", "data"): pytest.approx(weight * 3 / 4, rel=0.05),
    }
    between = [c for c in found if c.crossing.slices > 1]
    seconds = sum(link_seconds(CHIPS["v5e"], c) for c in between)
    assert seconds == (weight / 4 + weight / 8) / 3.125e9
    # Without what the host is told, nothing would seem to leave the slice.
    text = (GOLDEN / "slices_v5e_2x2x2slices.hlo").read_text(encoding="utf-8")
    module = parse(text.replace("_xla_megascale_transfer_type", "_"))
    assert not [
        c for c in find_collectives(module, walk(module), {"data": 4}) if c.crossing.slices > 1
    ]


def test_permutation_and_reduce_scatter_on_tpu():
    module = parse((GOLDEN / "exchange_v5e_4x4.hlo").read_text(encoding="utf-8"))
    found = find_collectives(module, walk(module), {"data": 4, "fsdp": 4})
    rows = sorted((c.kind, c.crossing.label, c.times, c.bytes_received, c.part) for c in found)
    assert rows == [
        ("collective-permute", "data", 1, 256 * 256 * 2, "loss"),
        ("reduce-scatter", "data", 1, 1024 * 256 * 2 * 3 / 4, "loss"),
    ]


ASYNCHRONOUS = """\
HloModule m

%start (p0: f32[8]) -> (f32[8], f32[64], u32[]) {
  %p0 = f32[8]{0} parameter(0)
  %gather.1 = f32[64]{0} all-gather(%p0), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %s = (f32[8]{0}, f32[64]{0}, u32[]{:S(2)}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (q0: f32[8], q1: f32[4]) -> (f32[4], f32[8]) {
  %q0 = f32[8]{0} parameter(0)
  %q1 = f32[4]{0} parameter(1)
  %gather.2 = f32[64]{0} all-gather(%q0), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %work = f32[4]{0} negate(%q1)
  ROOT %t = (f32[4]{0}, f32[8]{0}) tuple(%work, %q0)
}

%done (r0: f32[8]) -> f32[64] {
  %r0 = f32[8]{0} parameter(0)
  %gather.3 = f32[64]{0} all-gather(%r0), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %d = f32[64]{0} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[8], y: f32[4]) -> f32[64] {
  %x = f32[8]{0} parameter(0)
  %y = f32[4]{0} parameter(1)
  %begin = (f32[8]{0}, f32[64]{0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start
  %mid = (f32[4]{0}, f32[8]{0}) fusion(%x, %y), kind=kLoop, calls=%async_collective_fusion.1
  ROOT %end = f32[64]{0} fusion(%x), kind=kCustom, calls=%done
}
"""  # noqa: E501


def test_the_pieces_of_an_asynchronous_collective_count_once():
    module = parse(ASYNCHRONOUS)
    (only,) = find_collectives(module, walk(module), MESH)
    assert (only.kind, only.times, only.bytes_received) == ("all-gather", 1, 7 * 32)


MERGED = """\
HloModule m

ENTRY %main (x: f32[1024], y: f32[]) -> (f32[1024], f32[]) {
  %x = f32[1024]{0} parameter(0)
  %y = f32[] parameter(1)
  %grad = f32[1024]{0} negate(%x), metadata={op_name="jit(step)/transpose(jvp(CLIP))/neg"}
  %loss = f32[] negate(%y), metadata={op_name="jit(step)/jvp()/shard_map/neg"}
  ROOT %sum = (f32[1024]{0}, f32[]) all-reduce(%grad, %loss), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(step)/jvp()/shard_map/psum"}
}
"""  # noqa: E501


def test_merged_collectives_belong_to_whom_most_bytes_belong():
    module = parse(MERGED)
    (only,) = find_collectives(module, walk(module), MESH)
    assert only.part == "step"
    alone = parse(MERGED.replace("(%grad, %loss)", "(%loss)"))
    assert find_collectives(alone, walk(alone), MESH)[0].part == "loss"
