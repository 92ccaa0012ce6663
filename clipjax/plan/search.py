"""Search by compiling: settings that fit, fastest bound first, the largest batch, their page."""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from clipjax.experiment import Resolved
from clipjax.plan.advice import Setting, extra_flops, predicted_bytes, recomputation_order, settings
from clipjax.plan.planner import Plan, fsdp_sizes, make_plan
from clipjax.plan.report import digits
from clipjax.plan.topology import Topology

PlanFn = Callable[[Resolved, Topology], Plan]
# A setting that the memory model puts this far above the capacity is not compiled.
HOPELESS = 1.3
GIB = 2**30
_UNKNOWN_SHOWN = 4  # settings that were not compiled, on the page; the JSON has all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A setting and what is known about it.

    Attributes:
        setting: remat, micro-batches, sharding.
        extra_flops: recomputation, as a share of the model's FLOPs.
        predicted_bytes: by the memory model.
        plan: what the compiler says; None if it was not asked.
        refused: why the config cannot be so, in the words of its check; None if it can.
    """

    setting: Setting
    extra_flops: float
    predicted_bytes: float
    plan: Plan | None
    refused: str | None = None


def with_setting(resolved: Resolved, setting: Setting, batch_size: int | None = None) -> Resolved:
    """A run under another setting, and with another batch if one is given."""
    settings = resolved.settings
    batch_size = batch_size or settings.batch_size
    mesh = dataclasses.replace(settings.mesh, data=-1, fsdp=setting.fsdp)
    if setting.sharding != "tensor" == settings.sharding:
        mesh = dataclasses.replace(mesh, tensor=1)  # the other tables have no use for the axis
    micro = batch_size // setting.micro_batches
    return resolved.under(
        dataclasses.replace(
            settings,
            batch_size=batch_size,
            remat=setting.remat,
            micro_batch_size=micro if setting.micro_batches > 1 else None,
            sharding=setting.sharding,
            mesh=mesh,
        )
    )


def search_settings(
    resolved: Resolved,
    topology: Topology,
    first: Plan,
    *,
    max_compilations: int,
    plan_fn: PlanFn = make_plan,
) -> list[Candidate]:
    """Compiles the settings that may fit, least recomputation first.

    Args:
        resolved: as it was planned.
        topology: as it was planned.
        first: the plan of the config itself, which counts as one of the settings.
        max_compilations: that fit, at most; each takes as long as a plan.
        plan_fn: makes a plan.

    Returns:
        Those that fit, fastest bound first; then those not compiled; then those that do not fit;
        last those that the config cannot be set to.
    """
    scale = first.needed_bytes / predicted_bytes(first.step, first.setting)
    candidates = []
    left = max_compilations
    sizes = fsdp_sizes(first.setting, first.mesh)
    for setting in settings(first.step, first.setting, sizes):
        predicted = scale * predicted_bytes(first.step, setting)
        price = extra_flops(first.step, setting)
        plan, refused = first if setting == first.setting else None, None
        if plan is None and left and predicted < HOPELESS * first.capacity_bytes:
            flags = setting.flags(first.batch_size, first.setting)
            logging.info("Search: %s", " ".join(flags))
            try:
                plan = plan_fn(with_setting(resolved, setting), topology)
                left -= plan.fits  # a refusal comes early, in a small part of the time
            except ValueError as error:  # this setting is not for this config; others may be
                refused = str(error)
                logging.info("Search: refused: %s", refused)
        candidates.append(
            Candidate(
                setting=setting,
                extra_flops=price,
                predicted_bytes=predicted,
                plan=plan,
                refused=refused,
            )
        )
    return sorted(candidates, key=_order)


def _order(candidate: Candidate) -> tuple[int, float]:
    if candidate.refused is not None:
        return 3, candidate.extra_flops
    if candidate.plan is None:
        return 1, candidate.extra_flops
    if not candidate.plan.fits:
        return 2, candidate.extra_flops
    return 0, candidate.plan.bound_s


def largest_batch(
    resolved: Resolved,
    topology: Topology,
    first: Plan,
    *,
    plan_fn: PlanFn = make_plan,
    tolerance: float = 1 / 16,
) -> tuple[int, dict[int, bool]]:
    """Bisects the examples a device that fit under the config's own setting.

    The bracket starts where the memory model, scaled to the first plan, sees the limit.

    Args:
        resolved: as it was planned.
        topology: as it was planned.
        first: the plan of the config.
        plan_fn: makes a plan.
        tolerance: share of the answer within which to stop.

    Returns:
        (largest batch a device that compiled, 0 for none; {batch a device: fits} of all tried).
    """
    unit = first.setting.micro_batches
    tried = {round(first.batch_per_device): first.fits}

    def fits(per_device: int) -> bool:
        if per_device not in tried:
            batch = per_device * first.step.num_devices
            logging.info("Search: %d examples a device", per_device)
            tried[per_device] = plan_fn(with_setting(resolved, first.setting, batch), topology).fits
        return tried[per_device]

    def rounded(examples: float) -> int:
        return max(unit, int(examples) // unit * unit)

    def model(per_device: int) -> float:
        step = dataclasses.replace(first.step, batch_per_device=per_device)
        return predicted_bytes(step, first.setting)

    scale = first.needed_bytes / model(round(first.batch_per_device))
    slope = scale * (model(2 * unit) - model(unit)) / unit
    room = first.capacity_bytes - first.needed_bytes
    guess = rounded(first.batch_per_device + room / slope)
    low, high = _bracket(fits, rounded, guess)
    while low and high - low > max(unit, tolerance * low):
        middle = rounded((low + high) / 2)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, dict(sorted(tried.items()))


def _bracket(
    fits: Callable[[int], bool], rounded: Callable[[float], int], guess: int
) -> tuple[int, int]:
    """A batch that fits, or 0, and a larger one that does not, in widening steps."""
    if not fits(guess):
        high, factor = guess, 1.125
        while high > rounded(0):
            low = rounded(high / factor)
            if fits(low):
                return low, high
            high, factor = low, factor**2
        return 0, high
    low, factor = guess, 1.125
    while fits(high := max(rounded(low * factor), low + rounded(0))):
        low, factor = high, factor**2
    return low, high


def settings_to_text(candidates: Sequence[Candidate], plan: Plan) -> str:
    """The table of the settings."""
    lines = ["", "Settings, fastest bound first (a bound, not a forecast)"]
    lines.append(
        f"  {'remat':<9} {'micro-batches':>13} {'sharding':<11} {'fsdp':>5} {'GiB':>7} "
        f"{'+FLOPs':>7} {'step ms >=':>11}"
    )
    unknown = [c for c in candidates if c.plan is None and c.refused is None]
    for candidate in (c for c in candidates if c not in unknown[_UNKNOWN_SHOWN:]):
        setting, compiled = candidate.setting, candidate.plan
        size, note = candidate.predicted_bytes / GIB, "   predicted, not compiled"
        if candidate.refused is not None:
            note = f"   refused: {textwrap.shorten(candidate.refused, 60, placeholder=' ...')}"
        if compiled is not None:
            size = compiled.needed_bytes / GIB
            note = f"{digits(compiled.bound_s * 1e3):>11}" if compiled.fits else "   does not fit"
        lines.append(
            f"  {setting.remat:<9} {setting.micro_batches:>13} {setting.sharding:<11} "
            f"{setting.fsdp:>5} {size:7.2f} {candidate.extra_flops:7.0%} {note}"
        )
    if len(unknown) > _UNKNOWN_SHOWN:
        lines.append(
            f"  and {len(unknown) - _UNKNOWN_SHOWN} with as much recomputation or more, not "
            "compiled (--search_compilations)"
        )
    best = best_setting(candidates, plan)
    if best is not None:
        flags = " ".join(best.setting.flags(plan.batch_size, plan.setting)) or "as planned above"
        lines += ["", f"Least recomputation that fits, as compiled: {flags}"]
    return "\n".join(lines)


def best_setting(candidates: Sequence[Candidate], plan: Plan) -> Candidate | None:
    """Of those that fit, the one of least recomputation, then of the fastest bound."""
    return min(
        (c for c in candidates if c.plan is not None and c.plan.fits),
        key=lambda c: (recomputation_order(plan.step, c.setting), _bound(c)),
        default=None,
    )


def largest_batch_to_text(batch: tuple[int, dict[int, bool]], plan: Plan) -> str:
    """The largest batch and what was compiled to find it."""
    largest, tried = batch
    compiled = ", ".join(f"{size} {'fits' if fits else 'does not'}" for size, fits in tried.items())
    return (
        f"\nLargest batch under the config's own setting: {largest} examples a device, "
        f"{largest * plan.step.num_devices:,} in all ({compiled})"
    )


def _bound(candidate: Candidate) -> float:
    return math.inf if candidate.plan is None else candidate.plan.bound_s


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
                "refused": candidate.refused,
                "fits": compiled and compiled.fits,
                "needed_bytes": compiled and compiled.needed_bytes,
                "step_s_bound": compiled and compiled.bounds and compiled.bounds.step_s,
            }
        )
    return {"settings": rows, "largest_batch_per_device": batch[0], "tried": batch[1]}
