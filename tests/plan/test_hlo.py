"""Loops are multiplied in: programs of known cost, compiled for CPU and (stored texts) for TPU."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from clipjax.plan.flops import count_flops
from clipjax.plan.hlo import parse, trip_count, walk
from clipjax.plan.traffic import count_traffic

GOLDEN = Path(__file__).parent.parent / "golden" / "plan"
PRODUCT = 2 * 32 * 64 * 64


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def flops_of(text):
    return count_flops(walk(parse(text)))


def towers(weights, x):
    """Seven products, each in an inner loop of three: 21."""

    def outer(x, weight):
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ weight), x), None

    return jax.lax.scan(outer, x, weights)[0].sum()


def test_nested_loops_are_multiplied():
    weights, x = jnp.zeros((7, 64, 64)), jnp.zeros((32, 64))
    program = compiled(towers, weights, x)
    assert flops_of(program.as_text()).total == 21 * PRODUCT
    # XLA's own count, which this replaces, has each loop's body once.
    assert program.cost_analysis()["flops"] < 3 * PRODUCT


def test_recomputation_is_seen():
    weights, x = jnp.zeros((7, 64, 64)), jnp.zeros((32, 64))

    def loss(weights, x, remat):
        def body(x, weight):
            return jnp.tanh(jnp.tanh(x @ weight) @ weight), None

        if remat:
            body = jax.checkpoint(body, policy=jax.checkpoint_policies.nothing_saveable)
        return jax.lax.scan(body, x, weights)[0].sum()

    plain, remat = (
        flops_of(compiled(jax.grad(lambda w, x, r=r: loss(w, x, r)), weights, x).as_text())
        for r in (False, True)
    )
    # Two products a layer: once forward, twice backward; remat repeats those that gradients need.
    assert plain.total == 7 * 6 * PRODUCT
    assert plain.by_part["recomputed"] == 0
    assert remat.total == 7 * 8 * PRODUCT
    assert remat.by_part["recomputed"] == 7 * 2 * PRODUCT


def test_a_loop_without_a_constant_end_is_an_error():
    def halve(x):
        return jax.lax.while_loop(lambda y: y.sum() > 1, lambda y: y * 0.5, x)

    with pytest.raises(ValueError, match="trip count"):
        list(walk(parse(compiled(halve, jnp.ones((8, 8))).as_text())))


LOOP = """\
HloModule m

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %by = s32[]{:T(128)} constant(STEP)
  %x = f32[8]{0:T(128)S(1)} get-tuple-element(%state), index=1
  %next = s32[]{:T(128)} add(%i, %by)
  ROOT %out = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) tuple(%next, %x)
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %end = s32[]{:T(128)} constant(END)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %end), direction=DIRECTION
}

ENTRY %main (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0:T(128)} parameter(0)
  %start = s32[]{:T(128)} constant(START)
  %state.2 = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) tuple(%start, %x.1)
  %loop = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(128)S(1)}) while(%state.2), condition=%condition, body=%body
  ROOT %result = f32[8]{0:T(128)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("start", "end", "step", "direction", "trips"),
    [(0, 12, 1, "LT", 12), (2, 12, 1, "LT", 10), (0, 12, 5, "LT", 3), (1, 12, 1, "LE", 12)],
)
def test_trips_of_a_tpu_loop_come_from_its_condition(start, end, step, direction, trips):
    text = LOOP.replace("START", str(start)).replace("END", str(end)).replace("STEP", str(step))
    module = parse(text.replace("DIRECTION", direction))
    main = module.computations[module.entry]
    assert trip_count(module, main, main.instructions["loop"]) == trips


ADD = "%next = s32[]{:T(128)} add(%i, %by)"
STARTED = "%start = s32[]{:T(128)} constant(START)"


def loop_of(*changes, start=0, end=12, step=1, direction="LT"):
    text = LOOP
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    text = text.replace("START", str(start)).replace("END", str(end)).replace("STEP", str(step))
    module = parse(text.replace("DIRECTION", direction))
    main = module.computations[module.entry]
    return trip_count(module, main, main.instructions["loop"])


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ([], {"start": 12, "end": 0, "step": -1, "direction": "GT"}),
        ([], {"start": 12, "end": 0, "direction": "GT"}),
        ([], {"step": -1}),
        ([], {"step": 0}),
        ([], {"direction": "NE"}),
        ([(ADD, ADD.replace("add", "subtract"))], {}),
        ([(ADD, ADD.replace("add", "multiply"))], {"start": 1, "step": 2}),
        ([(ADD, ADD.replace("%i,", "%by,"))], {}),
        ([(ADD, ADD.replace("%by", "%i"))], {}),
        ([(STARTED, "%start = s32[]{:T(128)} parameter(1)")], {}),
        ([("compare(%i.1, %end)", "compare(%end, %i.1)")], {}),
    ],
)
def test_a_loop_that_does_not_count_up_by_a_constant_is_an_error(changes, options):
    assert loop_of() == 12
    with pytest.raises(ValueError, match="trip count of loop is not known"):
        loop_of(*changes, **options)


def test_a_counter_behind_copies_fusions_and_swapped_operands_is_read():
    swapped = ("compare(%i.1, %end)", "compare(%end, %i.1)")
    assert loop_of(swapped, direction="GT") == 12
    copied = (STARTED, "%zero = s32[] constant(START)\n  %start = s32[] copy(%zero)")
    assert loop_of(copied, start=-2) == 14
    adder = """\
%adder (p: s32[], q: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %q = s32[] parameter(1)
  ROOT %sum = s32[] add(%q, %p)
}

%body"""
    fused = (ADD, "%next = s32[] fusion(%by, %i), kind=kLoop, calls=%adder")
    assert loop_of(fused, ("%body (", f"{adder} ("), step=5) == 3


def test_a_start_that_was_hoisted_out_of_an_outer_loop_is_read():
    def text(handed_on):
        return f"""\
HloModule m

%inner (s: (s32[])) -> (s32[]) {{
  %s = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[]) tuple(%next)
}}

%test (t: (s32[])) -> pred[] {{
  %t = (s32[]) parameter(0)
  %j = s32[] get-tuple-element(%t), index=0
  %end = s32[] constant(9)
  ROOT %lt = pred[] compare(%j, %end), direction=LT
}}

%outer (u: (s32[], s32[])) -> (s32[], s32[]) {{
  %u = (s32[], s32[]) parameter(0)
  %k = s32[] get-tuple-element(%u), index=0
  %start = s32[] get-tuple-element(%u), index=1
  %one.1 = s32[] constant(1)
  %more = s32[] add(%k, %one.1)
  %state = (s32[]) tuple(%start)
  %loop = (s32[]) while(%state), condition=%test, body=%inner
  ROOT %out.1 = (s32[], s32[]) tuple(%more, %{handed_on})
}}

ENTRY %main () -> (s32[], s32[]) {{
  %zero = s32[] constant(0)
  %four = s32[] constant(4)
  %both = (s32[], s32[]) tuple(%zero, %four)
  ROOT %all = (s32[], s32[]) while(%both), condition=%test, body=%outer
}}
"""

    module = parse(text("start"))
    times = [v.times for v in walk(module) if v.instruction.opcode == "add"]
    assert sorted(times) == [9, 9 * 5]
    with pytest.raises(ValueError, match="trip count of loop is not known"):
        list(walk(parse(text("more"))))


def test_memory_spaces_and_types_are_read():
    loop = parse(LOOP).computations["main"].instructions["loop"]
    assert [(s.dtype, s.dims, s.space) for s in loop.shapes] == [("s32", (), 0), ("f32", (8,), 1)]
    assert loop.nbytes == 36


def test_a_text_that_is_no_module_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("nothing here")


def test_a_tpu_program_of_known_cost():
    """Six layers of one product: forward, recomputed, and two backward."""
    text = (GOLDEN / "fsdp_scan_v5e_4x4.hlo").read_text(encoding="utf-8")
    flops = flops_of(text)
    product = 2 * (2048 // 16) * 1024 * 1024
    assert flops.total == 6 * 4 * product
    assert flops.by_part["recomputed"] == 6 * product
    assert flops.by_part["forward"] == 6 * product


TRAFFIC = """\
HloModule m

%update (p0: f32[12,1024], p1: f32[1024], p2: s32[]) -> f32[12,1024] {
  %p0 = f32[12,1024]{1,0} parameter(0)
  %p1 = f32[1024]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,1024]{1,0} reshape(%p1)
  ROOT %written = f32[12,1024]{1,0} dynamic-update-slice(%p0, %row, %p2, %zero)
}

%inner (q0: f32[12,1024], q1: s32[]) -> f32[1,1024] {
  %q0 = f32[12,1024]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %slice = f32[1,1024]{1,0} dynamic-slice(%q0, %q1, %zero.1), dynamic_slice_sizes={1,1024}
}

%read (r0: f32[12,1024], r1: s32[]) -> f32[1,1024] {
  %r0 = f32[12,1024]{1,0} parameter(0)
  %r1 = s32[] parameter(1)
  %one = f32[1,1024]{1,0} fusion(%r0, %r1), kind=kLoop, calls=%inner
  ROOT %twice = f32[1,1024]{1,0} add(%one, %one)
}

ENTRY %main (x: f32[12,1024], y: f32[1024], i: s32[]) -> f32[12,1024] {
  %x = f32[12,1024]{1,0} parameter(0)
  %y = f32[1024]{0} parameter(1)
  %i = s32[] parameter(2)
  %near = f32[1024]{0:T(1024)S(1)} negate(%y)
  %hidden = f32[1,1024]{1,0:T(8,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%read
  ROOT %all = f32[12,1024]{1,0} fusion(%x, %near, %i), kind=kLoop, calls=%update
}
"""


def test_hbm_traffic_counts_slices_and_leaves_vmem_out():
    module = parse(TRAFFIC)
    traffic = count_traffic(module, walk(module))
    # Read y; read a row of x (both into VMEM); write a row of x in place; the index, twice.
    assert traffic.hbm == 4096 * 3 + 2 * 4
    assert traffic.vmem_peak == 4096


PART = """\
HloModule m

%pick (r0: f32[64,1024], r1: s32[]) -> f32[64,128] {
  %r0 = f32[64,1024]{1,0} parameter(0)
  %r1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %minus = f32[64,1024]{1,0} negate(%r0)
  ROOT %slice = f32[64,128]{1,0} dynamic-slice(%minus, %zero, %r1), dynamic_slice_sizes={64,128}
}

%step (p0: f32[32,64], p1: f32[64,1024], p2: s32[]) -> f32[32,128] {
  %p0 = f32[32,64]{1,0} parameter(0)
  %p1 = f32[64,1024]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %part = f32[64,128]{1,0} fusion(%p1, %p2), kind=kLoop, calls=%pick
  ROOT %product = f32[32,128]{1,0} convolution(%p0, %part), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[32,64], w: f32[64,1024], i: s32[]) -> f32[32,128] {
  %x = f32[32,64]{1,0} parameter(0)
  %w = f32[64,1024]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %y = f32[32,128]{1,0} fusion(%x, %w, %i), kind=kOutput, calls=%step
}
"""


def test_hbm_traffic_counts_what_a_windowed_product_asks_for():
    """A product with a slice of the weights, as when it overlaps a ring: not the whole array."""
    module = parse(PART)
    assert count_traffic(module, walk(module)).hbm == 4 * (32 * 64 + 64 * 128 + 1 + 32 * 128)
