"""The model FLOPs utilisation of a run: what its steps did of what its devices could."""

from collections.abc import Sequence
from typing import Any

from absl import logging

from clipjax.experiment import Program
from clipjax.plan.chips import chip_of_kind
from clipjax.plan.model_flops import flops_of


class Mfu:
    """Turns a rate into a share of the devices' peak in bfloat16.

    Args:
        peak: FLOP/s of all devices.
        needs: FLOPs of one example, by stage: forward and backward, nothing recomputed.
    """

    def __init__(self, peak: float, needs: Sequence[float]) -> None:
        self._peak, self._needs = peak, tuple(needs)

    def of(self, samples_per_s: float, stage: int) -> float:
        """The share that a rate of a stage is."""
        return samples_per_s * self._needs[stage] / self._peak


def make_mfu(program: Program) -> Mfu | None:
    """The utilisation of a program; None where the peak of its devices is not known."""
    devices: Any = program.mesh.devices
    device = devices.flat[0]
    chip = chip_of_kind(device.device_kind)
    if chip is None:
        if device.platform != "cpu":
            logging.info("no peak of %s is known here: metrics have no mfu", device.device_kind)
        return None
    needs = [flops_of(stage).train for stage in program.stages]
    return Mfu(devices.size * chip.flops / chip.devices, needs)
