"""Search by compiling: the settings that fit, fastest bound first, and the largest batch."""

import dataclasses
from collections.abc import Callable

from absl import logging

from clipjax.experiment import Resolved
from clipjax.plan.advice import Setting, extra_flops, predicted_bytes, settings
from clipjax.plan.chips import Topology
from clipjax.plan.planner import Plan, fsdp_sizes, make_plan

PlanFn = Callable[[Resolved, Topology], Plan]
# A setting that the memory model puts this far above the capacity is not compiled.
HOPELESS = 1.3


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
        price = extra_flops(first.step.spec, setting)
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
    return 0, candidate.plan.bounds.step_s


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
