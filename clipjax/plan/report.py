"""A plan as one page of text and as JSON."""

import dataclasses
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from clipjax.plan import measured
from clipjax.plan.advice import Setting
from clipjax.plan.attention_time import counts_softmax
from clipjax.plan.chips import GPU_DEFAULT_SHARE, GPU_MEMORY_SHARE
from clipjax.plan.collectives import Collective
from clipjax.plan.gpu import unsettled
from clipjax.plan.planner import Plan
from clipjax.plan.roofline import Assumptions, link_seconds, run_cost

GIB = 2**30


def grouped(collectives: Sequence[Collective]) -> list[tuple[str, str, str, int, float]]:
    """Sums collectives to rows (part, kind, axes, runs a step, bytes), most bytes first."""
    rows: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for collective in collectives:
        row = rows[collective.part, collective.kind, collective.crossing.label]
        row[0] += collective.times
        row[1] += collective.total_bytes
    found = [(*key, int(times), size) for key, (times, size) in rows.items()]
    return sorted(found, key=lambda row: (row[0] != "step", -row[4]))


def digits(value: float, places: int = 1) -> str:
    """A number to `places` places; below 1, to two digits that are not zero."""
    return f"{value:,.{places}f}" if value >= 1 or value == 0 else f"{value:.2g}"


def to_text(plan: Plan, assumptions: Assumptions) -> str:
    """The page."""
    lines = [
        *_heading(plan),
        *_memory(plan),
        *_recomputation(plan),
        *_flops(plan),
        *_links(plan),
        *_bounds(plan),
        *_run(plan, assumptions),
    ]
    return "\n".join(lines)


def _heading(plan: Plan) -> Iterator[str]:
    topology, setting = plan.topology, plan.setting
    per_device = f"{plan.batch_per_device:g} a device"
    micro = "" if setting.micro_batches == 1 else f" in {setting.micro_batches} micro-batches"
    verdict = "FITS" if plan.fits else "DOES NOT FIT"
    yield f"{plan.config_name} at batch {plan.batch_size:,} on {topology.name}: {verdict}"
    yield (
        f"{topology.num_chips:,} {'GPU' if topology.chip.is_gpu else 'chip'}"
        f"{'' if topology.num_chips == 1 else 's'}, {topology.num_hosts:,} "
        + ("host" if topology.num_hosts == 1 else "hosts")
        + (f", {topology.num_slices} slices; mesh " if topology.num_slices > 1 else "; mesh ")
        + " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
        + f"; {per_device}{micro}; sharding {setting.sharding}, remat {setting.remat}"
    )
    yield (
        f"Compiled ahead of time in {plan.compile_seconds:.0f} s with {topology.chip.compiler}; "
        "nothing was run."
    )
    if topology.chip.is_gpu:
        yield from _wrapped(unsettled(plan.compiler_options))
    if topology.chip.devices > 1:
        yield (
            f"A {topology.chip.name} chip is {topology.chip.devices} devices here; memory, FLOPs "
            "and bytes below are of one device."
        )
    if len(plan.stages) > 1:
        yield (
            f"Planned is stage {plan.planned + 1} of {len(plan.stages)}, which computes most: "
            f"{plan.stages[plan.planned].sizes}"
        )


def _memory(plan: Plan) -> Iterator[str]:
    capacity = plan.capacity_bytes / GIB
    yield ""
    yield f"HBM, GiB of {capacity:.2f} a device"
    if plan.memory is None:
        yield (
            f"  needed           {plan.needed_bytes / GIB:8.2f}  of the temporaries alone, state "
            "and batch not counted: the compiler gave up there"
        )
    else:
        memory = plan.memory
        rows = (
            ("arguments", memory.arguments, "train state and batch"),
            ("temporaries", memory.temporaries, "activations, gradients, buffers"),
            ("outputs", memory.outputs, "new state and metrics"),
            ("aliased", -memory.aliased, "outputs in the place of arguments"),
            ("program", memory.code, ""),
            ("next batch", plan.next_batch_bytes, "sent while the step runs"),
        )
        for name, size, what in rows:
            yield f"  {name:<16} {size / GIB:8.2f}  {what}".rstrip()
        share = plan.needed_bytes / plan.capacity_bytes
        yield f"  {'total':<16} {plan.needed_bytes / GIB:8.2f}  {share:.0%}"
        yield from _gpu_memory(plan)
    if not plan.fits:
        yield "  What should fit, by a model of the memory; compile it to know:"
        for advice in plan.advice:
            yield (
                f"    {' '.join(advice.flags)}  (about {advice.predicted_bytes / GIB:.1f} GiB, "
                f"+{advice.extra_flops:.0%} FLOPs)"
            )
        if not plan.advice:
            yield "    nothing at this batch: fewer examples a device, so more chips"
    if plan.unsharded_state:
        yield from _wrapped(f"WARNING: {plan.unsharded_state}", "  ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width=100,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )


def _gpu_memory(plan: Plan) -> Iterator[str]:
    """JAX takes a part of a GPU when it starts, and a step has to do with that."""
    chip = plan.topology.chip
    if not chip.is_gpu or not plan.fits:
        return
    share = plan.needed_bytes / (chip.hbm_bytes / GPU_MEMORY_SHARE)
    if share > GPU_DEFAULT_SHARE:
        yield (
            f"  JAX takes {GPU_DEFAULT_SHARE:.0%} of a GPU; this needs "
            f"XLA_PYTHON_CLIENT_MEM_FRACTION={min(GPU_MEMORY_SHARE, share + 0.02):.2f}"
        )


def _recomputation(plan: Plan) -> Iterator[str]:
    """Which of remat and micro-batches: one line."""
    preference = plan.preference
    if preference is None:
        return
    yield ""
    start = "Remat or micro-batches:"
    best = preference.setting
    if best is None:
        yield f"{start} no mix fits under this sharding; shard the state, or take more chips"
    elif best != plan.setting:
        yield (
            f"{start} prefer {_in_words(best)}: about {preference.predicted_bytes / GIB:.1f} GiB, "
            f"+{preference.extra_flops:.0%} FLOPs, not +{plan.expected_extra_flops:.0%}"
        )
        flags = " ".join(best.flags(plan.batch_size, plan.setting))
        yield f"  {flags}  (by a model of the memory; plan it to know)"
    elif best.micro_batches > 1:
        full = next(size for s, size in preference.refused if (s.remat, s.micro_batches) == _LAST)
        yield (
            f"{start} {_in_words(best)}; no policy fits the whole batch "
            f"(full: about {full / GIB:.1f} GiB)"
        )
    else:
        cheaper = preference.refused[-1:]
        reason = "".join(f" ({s.remat}: about {size / GIB:.1f} GiB)" for s, size in cheaper)
        yield f"{start} {_in_words(best)}, is the cheapest that fits{reason}"


_LAST = ("full", 1)  # the last remat policy before the batch is cut


def _in_words(setting: Setting) -> str:
    if setting.micro_batches == 1:
        return f"remat {setting.remat}, whole batch"
    return f"{setting.micro_batches} micro-batches with remat {setting.remat}"


def _flops(plan: Plan) -> Iterator[str]:
    needs = plan.model_flops
    yield ""
    yield "FLOPs"
    yield (
        f"  model            {digits(needs.train / 1e9):>8} GFLOP an example: 3 x (image "
        f"{digits(needs.image / 1e9)} + text {digits(needs.text / 1e9)}) + "
        f"loss {digits(needs.loss / 1e9, 2)} "
        f"({needs.source})"
    )
    if plan.flops is None:
        return
    compiled = plan.flops.total / plan.batch_per_device
    yield (
        f"  compiled         {digits(compiled / 1e9):>8} GFLOP an example, "
        f"loop trips multiplied in: {plan.flops_over_model:.3f} x model"
    )
    parts = (
        f"{part} {digits(flops / plan.batch_per_device / 1e9)}"
        for part, flops in plan.flops.by_part.items()
    )
    yield f"    {', '.join(parts)}"
    for name, (times, flops) in sorted(plan.flops.kernels.items(), key=lambda item: -item[1][1]):
        yield (
            f"    of it {digits(flops / plan.batch_per_device / 1e9)} in {times:,} calls of {name}"
        )
    for name, times in plan.flops.uncounted.items():
        yield f"    NOT COUNTED: {times:,} calls of {name}, which states no FLOPs"
    spared = plan.expected_spared_flops
    if spared > 0:
        towers = " and ".join(plan.step.narrow)
        yield (
            f"    spared by the last block of {towers}, which computes what is pooled: "
            f"-{spared:.1%} FLOPs"
        )
    price = plan.expected_extra_flops
    if price > 0.02:
        names = [f"remat {plan.setting.remat}"] if plan.setting.remat != "none" else []
        names += ["gradient caching"] if plan.setting.micro_batches > 1 else []
        yield f"    the price of {' and '.join(names)}: +{price:.0%} FLOPs"


def _links(plan: Plan) -> Iterator[str]:
    if plan.flops is None:
        return
    yield ""
    yield "Collectives: MB that each device receives in a step"
    for part, kind, axes, times, size in grouped(plan.collectives):
        yield f"  {part:<5} {kind:<19} over {axes:<12} x {times:<6,} {size / 1e6:10.1f}"
    between = [c for c in plan.collectives if c.crossing.slices > 1]
    if plan.topology.num_slices > 1:
        seconds = sum(link_seconds(plan.topology.chip, c) for c in between)
        yield (
            f"  between slices {sum(c.total_bytes for c in between) / 1e6:.1f} of it, "
            f"{digits(seconds * 1e3)} ms at the network's published bandwidth"
        )
    for part, formula in plan.collective_formulas.items():
        total = sum(c.total_bytes for c in plan.collectives if c.part == part)
        if formula:
            yield (
                f"  {part:<5} total {total / 1e6:.1f} against {formula / 1e6:.1f} by the formula: "
                f"{total / formula:.2f} x"
            )


def _bounds(plan: Plan) -> Iterator[str]:
    bounds, traffic = plan.bounds, plan.traffic
    if bounds is None or traffic is None:
        return
    images = bounds.samples_per_s_chip * plan.topology.num_chips / plan.topology.num_hosts
    yield ""
    yield "Bounds, from published peaks: no run can be faster; not a forecast"
    yield (
        f"  step time        {digits(bounds.step_s * 1e3):>8} ms at least, "
        f"limited by {bounds.limited_by}"
    )
    yield (
        f"    compute {digits(bounds.compute_s * 1e3)} ms, HBM {digits(bounds.hbm_s * 1e3)} ms "
        f"({digits(traffic.hbm / 1e9, 0)} GB), links {digits(bounds.links_s * 1e3)} ms"
    )
    yield f"  samples/s a chip {bounds.samples_per_s_chip:8.0f} at most"
    yield f"  MFU              {bounds.mfu:8.0%} at most"
    yield f"  images/s a host  {images:8.0f} to decode at that rate"
    yield from _attention(plan)
    yield from _checked(plan)


def _attention(plan: Plan) -> Iterator[str]:
    """What the kernels of attention take by themselves, which the bound does not have."""
    if not plan.attention_times:
        return
    runs = ", ".join(
        f"{times:,} {which} {digits(seconds * 1e3)}"
        for which, (times, seconds) in plan.attention_times.items()
    )
    total = sum(seconds for _, seconds in plan.attention_times.values())
    softmax = "the softmax" if counts_softmax(plan.topology.chip) else "not the softmax"
    yield from _wrapped(
        f"Attention kernels, an estimate: {digits(total * 1e3)} ms by themselves ({runs}), with "
        f"padding to whole tiles and {softmax}; the bound has their products at the peak",
        "  ",
    )


def _checked(plan: Plan) -> Iterator[str]:
    """How far such plans were from a device."""
    found = measured.of_chip(plan.topology.chip.name)
    if not found:
        yield "  No plan for this chip was checked against a run on it."
        return
    yield from _wrapped(
        f"Checked on {measured.DEVICE}, {measured.WHEN}, {measured.STEPS} ({measured.FILE}):", "  "
    )
    for row in found:
        yield from _wrapped(
            f"{row.setting}, compiled by {row.compiled_by}: memory {row.planned_bytes / 1e9:.1f} "
            f"GB planned, {row.measured_bytes / 1e9:.1f} measured; a step took "
            f"{digits(row.measured_s * 1e3, 0)} ms, {row.time_factor:.2f} x its bound",
            "    ",
        )


def _run(plan: Plan, assumptions: Assumptions) -> Iterator[str]:
    run, reached = _cost(plan, assumptions), _reachable(plan, assumptions)
    yield ""
    yield f"The run: {plan.total_steps:,} steps, {run['examples']:,} examples"
    if reached.mfu < assumptions.mfu:
        yield (
            f"  at the MFU bound of {reached.mfu:.0%}, below the assumed {assumptions.mfu:.0%} "
            "(--mfu): no run can be faster or cost less:"
        )
    else:
        yield f"  at an ASSUMED MFU of {reached.mfu:.0%} (--mfu; not measured, not promised):"
    until = 0
    for stage in run["stages"]:
        until += stage["steps"]
        rates = (
            f"  {stage['samples_per_s_chip']:,.0f} samples/s a chip, "
            f"{stage['images_per_s_host']:,.0f} images/s a host to decode"
        )
        if len(plan.stages) > 1:
            yield f"  up to step {until:,}, {stage['examples']:,} examples: {stage['sizes']}"
            rates += f"; {digits(stage['chip_hours'], 0)} chip-hours"
            if stage["cost_usd"] is not None:
                rates += f", {digits(stage['cost_usd'], 0)} USD"
        yield rates
    yield f"  {digits(run['chip_hours'], 0)} chip-hours, {digits(run['days'])} days"
    if run["cost_usd"] is not None:
        cost = digits(run["cost_usd"], 0)
        yield f"  {cost} USD at {assumptions.price:g} USD a chip-hour (--price)"


def _reachable(plan: Plan, assumptions: Assumptions) -> Assumptions:
    """The assumptions with an MFU that the plan's own bound allows."""
    if plan.bounds is None or assumptions.mfu <= plan.bounds.mfu:
        return assumptions
    return dataclasses.replace(assumptions, mfu=plan.bounds.mfu)


def _cost(plan: Plan, assumptions: Assumptions) -> dict[str, Any]:
    reached = _reachable(plan, assumptions)
    cost = run_cost(plan.stages, plan.needs, plan.topology, reached)
    return {"mfu": reached.mfu, **cost}


def to_json(plan: Plan, assumptions: Assumptions) -> dict[str, Any]:
    """The plan as plain data; bytes, FLOPs and seconds, of one device unless named else."""
    topology = plan.topology
    chip = dataclasses.asdict(topology.chip)
    memory = None if plan.memory is None else {**plan.memory._asdict(), "total": plan.memory.total}
    return {
        "model": plan.config_name,
        "topology": {
            "name": topology.name,
            "chips": topology.num_chips,
            "devices": len(topology.devices),
            "hosts": topology.num_hosts,
            "slices": topology.num_slices,
            "chip": chip,
        },
        "mesh": plan.mesh,
        "batch_size": plan.batch_size,
        "stage": {
            "planned": plan.planned + 1,
            "of": len(plan.stages),
            "sizes": plan.stages[plan.planned].sizes,
        },
        "setting": dataclasses.asdict(plan.setting),
        "fits": plan.fits,
        "hbm": {
            "needed": plan.needed_bytes,
            "capacity": plan.capacity_bytes,
            "split": memory,
            "next_batch": plan.next_batch_bytes,
        },
        "advice": [dataclasses.asdict(advice) for advice in plan.advice],
        "preference": plan.preference and dataclasses.asdict(plan.preference),
        "unsharded_state": plan.unsharded_state,
        "flops": {
            "model_per_example": plan.model_flops._asdict(),
            "compiled": plan.flops and plan.flops._asdict(),
            "compiled_over_model": plan.flops_over_model,
            "expected_extra": plan.expected_extra_flops,
            "expected_spared": plan.expected_spared_flops,
        },
        "hbm_traffic": plan.traffic and plan.traffic._asdict(),
        "collectives": [
            dict(zip(("part", "kind", "axes", "times", "bytes"), row, strict=True))
            for row in grouped(plan.collectives)
        ],
        "collective_formulas": plan.collective_formulas,
        "bounds": plan.bounds and plan.bounds._asdict(),
        "attention_estimate": {
            which: {"times": times, "seconds": seconds}
            for which, (times, seconds) in plan.attention_times.items()
        },
        "checked": [
            {**dataclasses.asdict(row), "time_factor": row.time_factor}
            for row in measured.of_chip(topology.chip.name)
        ],
        "compiler": topology.chip.compiler,
        "compiler_options": dict(plan.compiler_options),
        "assumptions": dataclasses.asdict(assumptions),
        "run_at_assumed_mfu": _cost(plan, assumptions),
        "compile_seconds": plan.compile_seconds,
    }
