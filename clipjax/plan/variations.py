"""Search beside the memory: other ways to run the same step, tried one after another.

Attention, the scan over the layers and the loss's tile do not change what is computed. So none of
them is multiplied with the others: each value is compiled once on the best that was found, and what
lowers the bound is kept for the next.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from clipjax.config_fields import Settings
from clipjax.experiment import Resolved
from clipjax.experiment.execution import has_no_loop
from clipjax.experiment.memory import blocks_of
from clipjax.layers.attention import choose
from clipjax.layers.execution import Execution
from clipjax.losses.make_loss import TILE_SIZES
from clipjax.plan.chips import GIB
from clipjax.plan.planner import Plan, make_plan
from clipjax.plan.report import digits
from clipjax.plan.topology import Topology

PlanFn = Callable[[Resolved, Topology], Plan]
# A bound that is lower by less is not worth a flag.
WORTH = 0.99
# Config paths and the values to try; what a run does already is not tried.
VALUES: dict[str, tuple[Any, ...]] = {
    "attention": ("auto", "xla"),
    "scan_layers": (True, False),
    "loss.tile_size": (1024, 4096),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variation:
    """One change and what the compiler says of it.

    Attributes:
        flag: that makes it.
        plan: with it and all changes kept before it; None if it was refused.
        kept: whether it fits and lowers the bound.
        refused: why the config cannot be so; None if it can.
    """

    flag: str
    plan: Plan | None
    kept: bool
    refused: str | None = None


def with_value(settings: Any, path: str, value: Any) -> Any:
    """The settings with another value at a path."""
    name, _, rest = path.partition(".")
    if rest:
        value = with_value(getattr(settings, name), rest, value)
    return dataclasses.replace(settings, **{name: value})


def in_effect(settings: Settings, spec: Mapping[str, Any], platform: str) -> dict[str, Any]:
    """What settings come to on a platform, by path: `auto` and None as what they stand for there.

    Args:
        settings: of the run.
        spec: of its model.
        platform: of the devices.
    """
    attention: Any = {settings.attention}
    if settings.attention == "auto":  # as each tower's shapes allow
        execution = Execution(platform=platform)
        shapes = [
            (1, n, 3, t["num_heads"], t["width"] // t["num_heads"])
            for t, n in blocks_of(spec).values()
        ]
        arrays = [jax.ShapeDtypeStruct(shape, settings.dtype) for shape in shapes]
        attention = {choose(qkv, execution=execution) for qkv in arrays}
    return {
        "attention": attention,
        "scan_layers": not has_no_loop(settings, platform),
        "loss.tile_size": settings.loss.tile_size or TILE_SIZES[platform],
    }


def search_variations(
    resolved: Resolved,
    topology: Topology,
    first: Plan,
    *,
    max_compilations: int,
    plan_fn: PlanFn = make_plan,
) -> list[Variation]:
    """Tries the values of each path, on top of those that were kept.

    Args:
        resolved: the run, at the best setting that was found.
        topology: as it was planned.
        first: its plan.
        max_compilations: at most; each takes as long as a plan.
        plan_fn: makes a plan.
    """
    settings, best = resolved.settings, first
    platform = "gpu" if topology.chip.is_gpu else "tpu"
    found: list[Variation] = []
    for path, values in VALUES.items():
        for value in values:
            compiled = sum(variation.plan is not None for variation in found)
            changed = with_value(settings, path, value)
            now, then = (in_effect(s, first.step.spec, platform)[path] for s in (settings, changed))
            if now == then or compiled == max_compilations:
                continue
            flag = f"--config.{path}={str(value).lower()}"
            logging.info("Search: %s", flag)
            try:
                plan = plan_fn(resolved.under(changed), topology)
            except ValueError as error:  # not for this config
                found.append(Variation(flag=flag, plan=None, kept=False, refused=str(error)))
                continue
            kept = plan.fits and plan.bound_s < WORTH * best.bound_s
            found.append(Variation(flag=flag, plan=plan, kept=kept))
            if kept:
                settings, best = changed, plan
    return found


def variations_to_text(variations: Sequence[Variation]) -> str:
    """The table."""
    lines = ["", "Other ways to run the best of them, each on top of those that are kept"]
    for variation in variations:
        if variation.plan is None:
            lines.append(f"  {variation.flag:<34} refused: {variation.refused}")
            continue
        plan = variation.plan
        bound = f"{digits(plan.bound_s * 1e3):>8} ms at least" if plan.fits else "does not fit"
        lines.append(
            f"  {variation.flag:<34} {plan.needed_bytes / GIB:7.2f} GiB {bound}"
            f"{', kept' if variation.kept else ''}"
        )
    flags = [variation.flag for variation in variations if variation.kept]
    lines.append(f"Fastest bound: {' '.join(flags) or 'none of these; as it is'}")
    return "\n".join(lines)


def variations_to_json(variations: Sequence[Variation]) -> list[dict[str, Any]]:
    """The table as plain data."""
    return [
        {
            "flag": v.flag,
            "kept": v.kept,
            "refused": v.refused,
            "fits": v.plan and v.plan.fits,
            "needed_bytes": v.plan and v.plan.needed_bytes,
            "step_s_bound": v.plan and v.plan.bounds and v.plan.bounds.step_s,
        }
        for v in variations
    ]
