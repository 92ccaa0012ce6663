"""The step with the best value of a metric, which retention keeps.

The values are in the manifests of the steps that are there: a run that goes on needs nothing else.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import logging

from clipjax.checkpoint import folders
from clipjax.checkpoint import manifest as manifests
from clipjax.processes.distributed import gather, is_lead


class BestStep:
    """Compares the steps of a run by a metric.

    All processes call the same methods in the same order.

    Args:
        metric: `zero_shot/imagenet/top1`, of which the largest is best; with `-` in front the
            smallest. Empty: nothing is compared.
        directory: of the step folders.
    """

    def __init__(self, metric: str, directory: Path) -> None:
        self.name = metric.removeprefix("-")
        self._sign = -1 if metric.startswith("-") else 1
        self._directory = directory
        self._values: dict[int, float] | None = None

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes note of what was measured at a step; of other metrics nothing is kept.

        Raises:
            ValueError: the evaluation of the metric does not measure it.
        """
        if not self.name:
            return
        value = metrics.get(self.name)
        if value is None:
            beside = [
                name for name in metrics if name.startswith(self.name.rpartition("/")[0] + "/")
            ]
            if beside:
                raise ValueError(
                    f"config.checkpoint.best names {self.name!r}, and its evaluation measures "
                    f"{', '.join(beside)}; give one of these"
                )
            return
        values, before = self._read(), self.step
        value = gather(value)[0]  # floats of other devices may differ in their last digit
        if not math.isfinite(value):
            logging.warning("%s = %s at step %d is not compared", self.name, value, step)
            return
        values[step] = value
        if self.step == step != before:
            logging.info("step %d is the best by %s so far: %.6g", step, self.name, value)

    @property
    def step(self) -> int | None:
        """The best step so far, the first of equal ones; None where nothing was measured."""
        values = self._read() if self.name else {}
        return max(values, key=lambda step: (self._sign * values[step], -step), default=None)

    def metrics_of(self, step: int) -> dict[str, float]:
        """What the manifest of a step says: the metric's name and value, if it was measured."""
        values = self._read() if self.name else {}
        return {self.name: values[step]} if step in values else {}

    def _read(self) -> dict[int, float]:
        """The values of the steps that are there; read once, by the lead."""
        if self._values is None:
            found = _values_of(self.name, self._directory) if is_lead() else None
            self._values = {int(step): value for step, value in gather(found)[0].items()}
        return self._values


def _values_of(name: str, directory: Path) -> dict[str, float]:
    found = {}
    for step in folders.committed_steps(directory):
        try:
            metrics = manifests.read_manifest(directory / str(step)).metrics
        except manifests.DamagedCheckpointError as error:
            logging.warning("step %d is not compared: %s", step, error)
            continue
        if name in metrics:
            found[str(step)] = metrics[name]
    return found


def check_best(metric: str, known: Mapping[str, int], unknown: Iterable[str]) -> None:
    """Checks config.checkpoint.best before the first step.

    Args:
        metric: as `BestStep` has it.
        known: metrics of config.evals -> steps between two evaluations, 0 at the end only.
        unknown: beginnings of metrics whose evaluation does not say what it measures.

    Raises:
        ValueError: no evaluation measures it, or none does so during the run.
    """
    name = metric.removeprefix("-")
    if name and name not in known and not any(name.startswith(prefix) for prefix in unknown):
        names = [*sorted(known), *(f"{prefix}..." for prefix in unknown)]
        raise ValueError(
            f"config.checkpoint.best = {metric!r}: config.evals measures "
            f"{', '.join(names) or 'nothing'}; give one of these, with - in front where less is "
            "better"
        )
    if known.get(name) == 0:
        raise ValueError(
            f"config.checkpoint.best = {metric!r} is measured at the end only: give its "
            "evaluation in config.evals an every_steps"
        )
