"""The whole run of a config: its stages, and what it takes at an assumed MFU."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from clipjax.experiment import Stage
from clipjax.plan.chips import Topology
from clipjax.plan.model_flops import ModelFlops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the user states; nothing here is known from the program.

    Attributes:
        mfu: model FLOPs utilisation of the run.
        price: of one chip for one hour, in USD; None leaves the cost out.
    """

    mfu: float = 0.40
    price: float | None = None


def run_cost(
    stages: Sequence[Stage],
    needs: Sequence[ModelFlops],
    topology: Topology,
    assumptions: Assumptions,
) -> dict[str, Any]:
    """Time and cost of a run at the assumed MFU.

    Args:
        stages: of the run.
        needs: of each stage's model, one example.
        topology: what it runs on.
        assumptions: the MFU and the price.

    Returns:
        Totals of the run; rates of each stage under "stages", and of the last one beside them.
    """
    chips = topology.num_chips
    rates, chip_hours = [], 0.0
    for stage, flops in zip(stages, needs, strict=True):
        samples_per_s_chip = assumptions.mfu * topology.chip.flops / flops.train
        chip_hours += stage.batch_size * stage.num_steps / samples_per_s_chip / 3600
        rates.append(
            {
                "sizes": stage.sizes,
                "steps": stage.num_steps,
                "model_flops_per_example": flops.train,
                "samples_per_s_chip": samples_per_s_chip,
                "images_per_s_host": samples_per_s_chip * chips / topology.num_hosts,
            }
        )
    return {
        "examples": sum(stage.batch_size * stage.num_steps for stage in stages),
        "samples_per_s_chip": rates[-1]["samples_per_s_chip"],
        "images_per_s_host": rates[-1]["images_per_s_host"],
        "stages": rates,
        "chip_hours": chip_hours,
        "days": chip_hours / chips / 24,
        "cost_usd": None if assumptions.price is None else chip_hours * assumptions.price,
    }
