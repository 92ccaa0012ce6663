"""The laws of a set of runs: of compute along its best runs, and of size and samples."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from clipjax.scaling.evidence import Evidence, Observation
from clipjax.scaling.law import Choose, FittedLaw, fit_law, frontier

MIN_RUNS = {1: 4, 2: 5}  # by the number of quantities
LAION_PARTS = 5  # of log compute, as arXiv 2212.07143 has it
_QUANTITIES = {"compute": "GMAC in all", "gmac": "GMAC a pair", "samples": "pairs"}
SYMBOLS = {"compute": "C", "gmac": "G", "samples": "S"}


class Quantity(NamedTuple):
    """What an error depends on.

    Attributes:
        name: `compute`, `gmac` or `samples`.
        low: the least that was fitted.
        high: the most.
    """

    name: str
    low: float
    high: float

    @property
    def unit(self) -> str:
        """Of its values."""
        return _QUANTITIES[self.name]


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """A fitted law with its name.

    Attributes:
        title: what it is of.
        group: the data of its runs; empty for all.
        quantities: that it takes, in their order.
        fitted: the law.
        names: of the runs that it was fitted on.
    """

    title: str
    group: str
    quantities: tuple[Quantity, ...]
    fitted: FittedLaw
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Fit:
    """All laws of a set of runs.

    Attributes:
        evidence: the runs.
        laws: that of compute first.
        missing: title of a law that there is not -> why.
        level: of the intervals.
        num_resamples: of the bootstrap.
        seed: of its draws.
    """

    evidence: Evidence
    laws: tuple[ScalingLaw, ...]
    missing: Mapping[str, str]
    level: float
    num_resamples: int
    seed: int


def fit_scaling(
    evidence: Evidence,
    *,
    parts: int = 0,
    level: float = 0.9,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Fit:
    """Fits the law of compute, and for the runs of each group that of size and samples.

    Args:
        evidence: the runs.
        parts: the law of compute is of the best run in each of so many equal parts of log compute,
            what a model of the right size reaches; 0: of all runs.
        level: of the intervals, in (0, 1).
        num_resamples: of the runs.
        seed: of the resamples.

    Raises:
        ValueError: there are too few runs, or all took the same compute.
    """
    runs = evidence.observations
    how = {"num_resamples": num_resamples, "seed": seed}
    _enough(runs, evidence, 1)
    choose = functools.partial(frontier, parts=parts) if parts else None
    title = f"compute, best of {parts} parts" if parts else "compute"
    fitted, chosen = _fit(runs, ("compute",), choose, how)
    if fitted is None:
        raise ValueError(
            f"all {len(runs)} runs took the same compute, {runs[0].compute:.3g} GMAC: a law takes "
            "runs of different sizes or lengths"
        )
    if len(chosen) < MIN_RUNS[1]:
        raise ValueError(
            f"--parts {parts}: only {len(chosen)} of them have a run, of {MIN_RUNS[1]} that a law "
            "takes; --parts 0 fits all runs"
        )
    laws = [_named(title, "", ("compute",), fitted, chosen)]
    missing = {}
    for group in dict.fromkeys(run.group for run in runs):
        mine = [run for run in runs if run.group == group]
        title = f"size and samples{group and f', {group}'}"
        if reason := _too_little(mine):
            missing[title] = reason
            continue
        fitted, chosen = _fit(mine, ("gmac", "samples"), None, how)
        if fitted is None:
            missing[title] = "size and samples vary together: their exponents cannot be told apart"
            continue
        laws.append(_named(title, group, ("gmac", "samples"), fitted, chosen))
    return Fit(evidence, tuple(laws), missing, level, num_resamples, seed)


def _enough(runs: Sequence[Observation], evidence: Evidence, count: int) -> None:
    if len(runs) >= MIN_RUNS[count]:
        return
    names = ", ".join(run.name for run in runs) or "none"
    left = "; ".join(f"{len(n)} left out, {why}" for why, n in evidence.left_out.items())
    raise ValueError(
        f"{len(runs)} {'run has' if len(runs) == 1 else 'runs have'} {evidence.metric} ({names}), "
        f"and a law takes at least {MIN_RUNS[count]}{left and f' ({left})'}: {evidence.source} "
        "needs more sizes or lengths, as by `clipjax sweep --grid total_steps=1000,2000,4000,8000`"
    )


def _too_little(runs: Sequence[Observation]) -> str:
    """Why runs show no law of both."""
    for values, what in (({r.gmac for r in runs}, "size"), ({r.samples for r in runs}, "samples")):
        if len(values) == 1:
            other = "samples" if what == "size" else "size"
            return f"all {len(runs)} runs have the same {what}: by {other} it is that of compute"
    if len(runs) < MIN_RUNS[2]:
        return f"{len(runs)} runs, of at least {MIN_RUNS[2]}"
    return ""


def values_of(run: Observation, names: Sequence[str]) -> list[float]:
    """Of its quantities."""
    return [getattr(run, name) for name in names]


def _fit(
    runs: Sequence[Observation],
    names: Sequence[str],
    choose: Choose | None,
    how: Mapping[str, int],
) -> tuple[FittedLaw | None, list[Observation]]:
    x = np.array([values_of(run, names) for run in runs])
    error = np.array([run.error for run in runs])
    chosen = np.arange(len(runs)) if choose is None else choose(x, error)
    return fit_law(x, error, choose=choose, **how), [runs[int(place)] for place in chosen]


def _named(
    title: str,
    group: str,
    names: Sequence[str],
    fitted: FittedLaw,
    runs: Sequence[Observation],
) -> ScalingLaw:
    columns = zip(*(values_of(run, names) for run in runs), strict=True)
    quantities = tuple(
        Quantity(name, min(column), max(column))
        for name, column in zip(names, columns, strict=True)
    )
    return ScalingLaw(title, group, quantities, fitted, tuple(run.name for run in runs))
