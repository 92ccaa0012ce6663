"""What a config should reach by fitted laws, beside what it costs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.experiment import Stage
from clipjax.plan.chips import parse_topology
from clipjax.plan.model_flops import flops_of, forward_size
from clipjax.plan.roofline import Assumptions, chip_hours
from clipjax.scaling.evidence import Observation
from clipjax.scaling.fitting import Fit, ScalingLaw, values_of

_SAME = 1.01  # two counts of a model's multiply-adds, one of them rounded


@dataclasses.dataclass(frozen=True)
class Expected:
    """What one law says.

    Attributes:
        law: which.
        error: the expected one.
        low: of the interval of one more run's error.
        high: of it.
        outside: where the config leaves what was fitted, a sentence; empty inside.
        is_possible: False where the law gives what no such error can be.
    """

    law: ScalingLaw
    error: float
    low: float
    high: float
    outside: str
    is_possible: bool


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What a config should reach.

    Attributes:
        name: of the config.
        samples: pairs that it sees.
        gmac: 10^9 multiply-adds of a forward pass, one pair; the mean over its stages.
        expected: by each law.
        cost: chip-hours, days and USD at the assumed MFU; None where no chips are named.
    """

    name: str
    samples: int
    gmac: float
    expected: tuple[Expected, ...]
    cost: dict[str, Any] | None


def expect(
    fit: Fit,
    name: str,
    stages: Sequence[Stage],
    topology: str | None = None,
    assumptions: Assumptions | None = None,
) -> Expectation:
    """Asks each law what the run of these stages should reach.

    Args:
        fit: the laws.
        name: of the config.
        stages: of its run.
        topology: as for `clipjax plan`; nothing is compiled for it.
        assumptions: the MFU and the price.

    Raises:
        ValueError: the topology is unknown.
    """
    samples, flops = forward_size(stages)
    run = Observation(name, "", samples, flops / 2e9, math.nan)
    cost = None
    if topology is not None:
        assumptions = assumptions or Assumptions()
        written, chip, shape, num_slices = parse_topology(topology)
        chips = math.prod(shape) * num_slices
        hours = sum(chip_hours(s, flops_of(s), chip, assumptions) for s in stages)
        price = assumptions.price
        cost = {
            "topology": written,
            "mfu": assumptions.mfu,
            "chip_hours": hours,
            "days": hours / chips / 24,
            "cost_usd": None if price is None else hours * price,
        }
    found = tuple(_of_law(fit, law, run) for law in fit.laws)
    return Expectation(name, samples, run.gmac, found, cost)


def _of_law(fit: Fit, law: ScalingLaw, run: Observation) -> Expected:
    values = values_of(run, [quantity.name for quantity in law.quantities])
    error, low, high = law.fitted.expected(np.array(values), fit.level)
    beyond = []
    for value, quantity in zip(values, law.quantities, strict=True):
        for far, edge in (
            (value / quantity.high, f"the most that was fitted, {quantity.high:.3g}"),
            (quantity.low / value, f"the least that was fitted, {quantity.low:.3g}"),
        ):
            if far > _SAME:
                way = "above" if value > quantity.high else "below"
                beyond.append(f"{far:.3g} times {way} {edge} {quantity.unit}")
    is_possible = error < 1 or not fit.evidence.is_share
    return Expected(law, error, low, high, "; ".join(beyond), is_possible)
