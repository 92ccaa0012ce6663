"""A search as a table and as JSON."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from clipjax.plan.advice import recomputation_order
from clipjax.plan.planner import Plan
from clipjax.plan.report import digits
from clipjax.plan.search import Candidate

GIB = 2**30
_UNKNOWN_SHOWN = 4  # settings that were not compiled, on the page; the JSON has all


def settings_to_text(candidates: Sequence[Candidate], plan: Plan) -> str:
    """The table of the settings."""
    lines = ["", "Settings, fastest bound first (a bound, not a forecast)"]
    lines.append(
        f"  {'remat':<6} {'micro-batches':>13} {'sharding':<11} {'fsdp':>5} {'GiB':>7} "
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
            note = (
                f"{digits(compiled.bounds.step_s * 1e3):>11}"
                if compiled.fits
                else "   does not fit"
            )
        lines.append(
            f"  {setting.remat:<6} {setting.micro_batches:>13} {setting.sharding:<11} "
            f"{setting.fsdp:>5} {size:7.2f} {candidate.extra_flops:7.0%} {note}"
        )
    if len(unknown) > _UNKNOWN_SHOWN:
        lines.append(
            f"  and {len(unknown) - _UNKNOWN_SHOWN} with as much recomputation or more, not "
            "compiled (--search_compilations)"
        )
    fitting = [c for c in candidates if c.plan is not None and c.plan.fits]
    if fitting:
        best = min(
            fitting, key=lambda c: (recomputation_order(plan.step.spec, c.setting), _bound(c))
        )
        flags = " ".join(best.setting.flags(plan.batch_size, plan.setting)) or "as planned above"
        lines += ["", f"Least recomputation that fits, as compiled: {flags}"]
    return "\n".join(lines)


def largest_batch_to_text(batch: tuple[int, dict[int, bool]], plan: Plan) -> str:
    """The largest batch and what was compiled to find it."""
    largest, tried = batch
    compiled = ", ".join(f"{size} {'fits' if fits else 'does not'}" for size, fits in tried.items())
    return (
        f"\nLargest batch under the config's own setting: {largest} examples a device, "
        f"{largest * plan.step.num_devices:,} in all ({compiled})"
    )


def _bound(candidate: Candidate) -> float:
    return candidate.plan.bounds.step_s


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
