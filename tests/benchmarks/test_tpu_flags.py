"""benchmarks/tpu_flags.py: what it says of a schedule."""

import pytest

from benchmarks.tpu_flags import overlap
from clipjax.plan.hlo import parse, walk

SCHEDULE = """HloModule step, is_scheduled=true

ENTRY %main (a: f32[64,64], b: f32[64,64]) -> f32[64,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %b = f32[64,64]{1,0} parameter(1)
  %first = f32[64,64]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %whole = f32[256,64]{1,0} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  %go = (f32[64,64]{1,0}, f32[64,64]{1,0}) collective-permute-start(%b), source_target_pairs=RING
BETWEEN  %here = f32[64,64]{1,0} collective-permute-done(%go)
AFTER  ROOT %sum = f32[64,64]{1,0} add(%here, %second)
}
""".replace("RING", "{{0,1},{1,2},{2,3},{3,0}}")
SECOND = (
    "  %second = f32[64,64]{1,0} dot(%a, %first), "
    "lhs_contracting_dims={1}, rhs_contracting_dims={0}\n"
)


@pytest.mark.parametrize("between", [True, False])
def test_what_stands_between_a_start_and_its_end_is_hidden(between):
    places = ("BETWEEN", "AFTER") if between else ("AFTER", "BETWEEN")
    text = SCHEDULE.replace(places[0], SECOND).replace(places[1], "")
    module = parse(text)
    found = overlap(module, walk(module), 4)
    product, array = 2 * 64**3, 4 * 64**2
    assert found.flops == 2 * product
    assert found.hidden_flops == (product if between else 0)
    assert (found.received, found.asynchronous) == (4 * array, array)


FUSED = """HloModule step, is_scheduled=true

%start (x: f32[64,64]) -> (f32[64,64], u32[]) {
  %x = f32[64,64]{1,0} parameter(0)
  %all-gather.1 = f32[256,64]{1,0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %go = (f32[64,64]{1,0}, u32[]) custom-call(%x, %all-gather.1), CALL="AsyncCollectiveStart"
}

%end (y: f32[64,64]) -> f32[256,64] {
  %y = f32[64,64]{1,0} parameter(0)
  %all-gather.2 = f32[256,64]{1,0} all-gather(%y), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %stop = f32[256,64]{1,0} custom-call(%y, %all-gather.2), CALL="AsyncCollectiveDone"
}

ENTRY %main (a: f32[64,64]) -> f32[256,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %before = f32[64,64]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %begun = (f32[64,64]{1,0}, u32[]) fusion(%a), kind=kCustom, calls=%start
  %beside = f32[64,64]{1,0} dot(%a, %before), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %ended = f32[256,64]{1,0} fusion(%beside), kind=kCustom, calls=%end
}
""".replace("CALL", "custom_call_target")


def test_fusions_start_and_end_a_collective_on_tpus():
    module = parse(FUSED)
    found = overlap(module, walk(module), 4)
    product, array = 2 * 64**3, 4 * 64**2
    assert (found.flops, found.hidden_flops) == (2 * product, product)
    assert (found.received, found.asynchronous) == (3 * array, 3 * array)
