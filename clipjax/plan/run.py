"""The whole run of a config: its stages, and what it takes at an assumed MFU."""

import dataclasses
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from clipjax.experiment import Program
from clipjax.experiment.program import model_plugins
from clipjax.experiment.stages import stage_models, stage_specs
from clipjax.plan.chips import Topology
from clipjax.plan.model_flops import ModelFlops, model_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the user states; nothing here is known from the program.

    Attributes:
        mfu: model FLOPs utilisation of the run.
        price: of one chip for one hour, in USD; None leaves the cost out.
    """

    mfu: float = 0.40
    price: float | None = None


class StageNeeds(NamedTuple):
    """Steps of one size.

    Attributes:
        sizes: in words.
        num_steps: how many.
        spec: the model spec with the stage's sizes.
        flops: of the model, one example.
    """

    sizes: str
    num_steps: int
    spec: dict[str, Any]
    flops: ModelFlops


def stage_needs(config: ConfigDict, program: Program) -> tuple[StageNeeds, ...]:
    """The stages of a run in their order; one without config.stages."""
    specs = stage_specs(config, program.spec)
    begins = (0, *(stage.until_step for stage in specs[:-1]))
    return tuple(
        StageNeeds(
            sizes=stage.sizes,
            num_steps=stage.until_step - begin,
            spec=stage.spec,
            flops=model_flops(
                stage.spec, model, config.batch_size, lock_image=bool(config.init.lock_image)
            ),
        )
        for stage, begin, model in zip(
            specs, begins, stage_models(config, specs, plugins=model_plugins(config)), strict=True
        )
    )


def run_cost(
    stages: tuple[StageNeeds, ...], batch_size: int, topology: Topology, assumptions: Assumptions
) -> dict[str, Any]:
    """Time and cost of a run at the assumed MFU.

    Args:
        stages: of `stage_needs`.
        batch_size: global.
        topology: what it runs on.
        assumptions: the MFU and the price.

    Returns:
        Totals of the run; rates of each stage under "stages", and of the last one beside them.
    """
    chips = topology.num_chips
    rates, chip_hours = [], 0.0
    for stage in stages:
        samples_per_s_chip = assumptions.mfu * topology.chip.flops / stage.flops.train
        chip_hours += batch_size * stage.num_steps / samples_per_s_chip / 3600
        rates.append(
            {
                "sizes": stage.sizes,
                "steps": stage.num_steps,
                "model_flops_per_example": stage.flops.train,
                "samples_per_s_chip": samples_per_s_chip,
                "images_per_s_host": samples_per_s_chip * chips / topology.num_hosts,
            }
        )
    return {
        "examples": batch_size * sum(stage.num_steps for stage in stages),
        "samples_per_s_chip": rates[-1]["samples_per_s_chip"],
        "images_per_s_host": rates[-1]["images_per_s_host"],
        "stages": rates,
        "chip_hours": chip_hours,
        "days": chip_hours / chips / 24,
        "cost_usd": None if assumptions.price is None else chip_hours * assumptions.price,
    }
