"""A plan as one page of text and as JSON."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from clipjax.plan.collectives import Collective
from clipjax.plan.planner import Plan
from clipjax.plan.search import Candidate

GIB = 2**30
_UNKNOWN_SHOWN = 4  # settings that were not compiled, on the page; the JSON has all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the user states; nothing here is known from the program.

    Attributes:
        mfu: model FLOPs utilisation of the run.
        price: of one chip for one hour, in USD; None leaves the cost out.
    """

    mfu: float = 0.40
    price: float | None = None


def grouped(collectives: Sequence[Collective]) -> list[tuple[str, str, str, int, float]]:
    """Sums collectives to rows (part, kind, axes, runs a step, bytes), most bytes first."""
    rows: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for collective in collectives:
        row = rows[collective.part, collective.kind, collective.crossing.label]
        row[0] += collective.times
        row[1] += collective.total_bytes
    found = [(*key, int(times), size) for key, (times, size) in rows.items()]
    return sorted(found, key=lambda row: (row[0] != "step", -row[4]))


def run_cost(plan: Plan, assumptions: Assumptions) -> dict[str, float | None]:
    """Time and cost of the config's run at the assumed MFU."""
    chip, chips = plan.topology.chip, plan.topology.num_chips
    examples = plan.batch_size * plan.total_steps
    samples_per_s_chip = assumptions.mfu * chip.flops / plan.model_flops.train
    chip_hours = examples / samples_per_s_chip / 3600
    return {
        "examples": examples,
        "samples_per_s_chip": samples_per_s_chip,
        "images_per_s_host": samples_per_s_chip * chips / plan.topology.num_hosts,
        "chip_hours": chip_hours,
        "days": chip_hours / chips / 24,
        "cost_usd": None if assumptions.price is None else chip_hours * assumptions.price,
    }


def to_text(plan: Plan, assumptions: Assumptions) -> str:
    """The page."""
    lines = [
        *_heading(plan),
        *_memory(plan),
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
        f"{topology.num_chips:,} chips, {topology.num_hosts:,} hosts; mesh "
        + " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
        + f"; {per_device}{micro}; sharding {setting.sharding}, remat {setting.remat}"
    )
    yield f"Compiled ahead of time in {plan.compile_seconds:.0f} s with libtpu; nothing was run."
    if topology.chip.devices > 1:
        yield (
            f"A {topology.chip.name} chip is {topology.chip.devices} devices here; memory, FLOPs "
            "and bytes below are of one device."
        )


def _memory(plan: Plan) -> Iterator[str]:
    capacity = plan.capacity_bytes / GIB
    yield ""
    yield f"HBM, GiB of {capacity:.2f} a device"
    if plan.memory is None:
        yield f"  needed           {plan.needed_bytes / GIB:8.2f}  and the compiler gave up"
    else:
        memory = plan.memory
        rows = (
            ("arguments", memory.arguments, "train state and batch"),
            ("temporaries", memory.temporaries, "activations, gradients, buffers"),
            ("outputs", memory.outputs, "new state and metrics"),
            ("aliased", -memory.aliased, "outputs in the place of arguments"),
            ("program", memory.code, ""),
        )
        for name, size, what in rows:
            yield f"  {name:<16} {size / GIB:8.2f}  {what}".rstrip()
        yield f"  {'total':<16} {memory.total / GIB:8.2f}  {memory.total / plan.capacity_bytes:.0%}"
    if not plan.fits:
        yield "  What should fit, by a model of the memory; compile it to know:"
        for advice in plan.advice:
            yield (
                f"    {' '.join(advice.flags)}  (about {advice.predicted_bytes / GIB:.1f} GiB, "
                f"+{advice.extra_flops:.0%} FLOPs)"
            )
        if not plan.advice:
            yield "    nothing at this batch: fewer examples a device, so more chips"


def _flops(plan: Plan) -> Iterator[str]:
    needs = plan.model_flops
    yield ""
    yield "FLOPs"
    yield (
        f"  model            {needs.train / 1e9:8.1f} GFLOP an example: 3 x (image "
        f"{needs.image / 1e9:.1f} + text {needs.text / 1e9:.1f}) + loss {needs.loss / 1e9:.2f} "
        f"({needs.source})"
    )
    if plan.flops is None:
        return
    compiled = plan.flops.total / plan.batch_per_device
    yield (
        f"  compiled         {compiled / 1e9:8.1f} GFLOP an example, loop trips multiplied in: "
        f"{plan.flops_over_model:.3f} x model"
    )
    parts = (
        f"{part} {flops / plan.batch_per_device / 1e9:.1f}"
        for part, flops in plan.flops.by_part.items()
    )
    yield f"    {', '.join(parts)}"
    price = plan.expected_extra_flops
    if price > 0.02:
        names = [f"remat {plan.setting.remat}"] if plan.setting.remat == "full" else []
        names += ["gradient caching"] if plan.setting.micro_batches > 1 else []
        yield f"    the price of {' and '.join(names)}: +{price:.0%} FLOPs"


def _links(plan: Plan) -> Iterator[str]:
    if plan.flops is None:
        return
    yield ""
    yield "Collectives: MB that each device receives in a step"
    for part, kind, axes, times, size in grouped(plan.collectives):
        yield f"  {part:<5} {kind:<19} over {axes:<12} x {times:<6,} {size / 1e6:10.1f}"
    for part, formula in plan.collective_formulas.items():
        total = sum(c.total_bytes for c in plan.collectives if c.part == part)
        if formula:
            yield (
                f"  {part:<5} total {total / 1e6:.1f} against {formula / 1e6:.1f} by the formula: "
                f"{total / formula:.2f} x"
            )


def _bounds(plan: Plan) -> Iterator[str]:
    if plan.bounds is None:
        return
    bounds = plan.bounds
    images = bounds.samples_per_s_chip * plan.topology.num_chips / plan.topology.num_hosts
    yield ""
    yield "Bounds, from published peaks: no run can be faster; not a forecast"
    yield (
        f"  step time        {bounds.step_s * 1e3:8.1f} ms at least, limited by {bounds.limited_by}"
    )
    yield (
        f"    compute {bounds.compute_s * 1e3:.1f} ms, HBM {bounds.hbm_s * 1e3:.1f} ms "
        f"({plan.traffic.hbm / 1e9:.0f} GB), links {bounds.links_s * 1e3:.1f} ms"
    )
    yield f"  samples/s a chip {bounds.samples_per_s_chip:8.0f} at most"
    yield f"  MFU              {bounds.mfu:8.0%} at most"
    yield f"  images/s a host  {images:8.0f} to decode at that rate"


def _run(plan: Plan, assumptions: Assumptions) -> Iterator[str]:
    run = run_cost(plan, assumptions)
    yield ""
    yield f"The run: {plan.total_steps:,} steps, {run['examples']:,} examples"
    yield f"  at an ASSUMED MFU of {assumptions.mfu:.0%} (--mfu; not measured, not promised):"
    yield (
        f"  {run['samples_per_s_chip']:,.0f} samples/s a chip, {run['images_per_s_host']:,.0f} "
        f"images/s a host to decode, {run['chip_hours']:,.0f} chip-hours, {run['days']:.1f} days"
    )
    if run["cost_usd"] is not None:
        yield f"  {run['cost_usd']:,.0f} USD at {assumptions.price:g} USD a chip-hour (--price)"
    if plan.bounds and assumptions.mfu > plan.bounds.mfu:
        yield "  This MFU is above the bound: it cannot be reached."


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
            "chip": chip,
        },
        "mesh": plan.mesh,
        "batch_size": plan.batch_size,
        "setting": dataclasses.asdict(plan.setting),
        "fits": plan.fits,
        "hbm": {"needed": plan.needed_bytes, "capacity": plan.capacity_bytes, "split": memory},
        "advice": [dataclasses.asdict(advice) for advice in plan.advice],
        "flops": {
            "model_per_example": plan.model_flops._asdict(),
            "compiled": plan.flops and plan.flops._asdict(),
            "compiled_over_model": plan.flops_over_model,
            "expected_extra": plan.expected_extra_flops,
        },
        "hbm_traffic": plan.traffic and plan.traffic._asdict(),
        "collectives": [
            dict(zip(("part", "kind", "axes", "times", "bytes"), row, strict=True))
            for row in grouped(plan.collectives)
        ],
        "collective_formulas": plan.collective_formulas,
        "bounds": plan.bounds and plan.bounds._asdict(),
        "assumptions": dataclasses.asdict(assumptions),
        "run_at_assumed_mfu": run_cost(plan, assumptions),
        "compile_seconds": plan.compile_seconds,
    }


def search_to_text(
    candidates: Sequence[Candidate], batch: tuple[int, dict[int, bool]], plan: Plan
) -> str:
    """The table of the settings and the largest batch."""
    lines = ["", "Settings, fastest bound first (a bound, not a forecast)"]
    lines.append(
        f"  {'remat':<6} {'micro-batches':>13} {'sharding':<11} {'fsdp':>5} {'GiB':>7} "
        f"{'+FLOPs':>7} {'step ms >=':>11}"
    )
    unknown = [candidate for candidate in candidates if candidate.plan is None]
    for candidate in (c for c in candidates if c not in unknown[_UNKNOWN_SHOWN:]):
        setting, compiled = candidate.setting, candidate.plan
        size, note = candidate.predicted_bytes / GIB, "   predicted, not compiled"
        if compiled is not None:
            size = compiled.needed_bytes / GIB
            note = f"{compiled.bounds.step_s * 1e3:11.1f}" if compiled.fits else "   does not fit"
        lines.append(
            f"  {setting.remat:<6} {setting.micro_batches:>13} {setting.sharding:<11} "
            f"{setting.fsdp:>5} {size:7.2f} {candidate.extra_flops:7.0%} {note}"
        )
    if len(unknown) > _UNKNOWN_SHOWN:
        lines.append(
            f"  and {len(unknown) - _UNKNOWN_SHOWN} with as much recomputation or more, not "
            "compiled (--search_compilations)"
        )
    largest, tried = batch
    compiled = ", ".join(f"{size} {'fits' if fits else 'does not'}" for size, fits in tried.items())
    lines += [
        "",
        f"Largest batch under the config's own setting: {largest} examples a device, "
        f"{largest * plan.step.num_devices:,} in all ({compiled})",
    ]
    return "\n".join(lines)


def search_to_json(
    candidates: Sequence[Candidate], batch: tuple[int, dict[int, bool]]
) -> dict[str, Any]:
    """The search as plain data."""
    rows = []
    for candidate in candidates:
        compiled = candidate.plan
        rows.append(
            {
                **dataclasses.asdict(candidate.setting),
                "extra_flops": candidate.extra_flops,
                "predicted_bytes": candidate.predicted_bytes,
                "compiled": compiled is not None,
                "fits": compiled and compiled.fits,
                "needed_bytes": compiled and compiled.needed_bytes,
                "step_s_bound": compiled and compiled.bounds and compiled.bounds.step_s,
            }
        )
    return {"settings": rows, "largest_batch_per_device": batch[0], "tried": batch[1]}
