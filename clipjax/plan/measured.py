"""Plans that were held against a run on the device: how far their figures were from it.

The planned figures are those of the tree that was measured, compiled by the same JAX without a GPU
and counted as a plan counts today.
"""

import dataclasses

DEVICE = "one H100 80GB SXM"
WHEN = "2026-11-28, jax 0.11.2, CUDA 13"
FILE = "benchmarks/results/plan_checked_h100_2026-11-28.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One setting, planned and measured, of one device.

    Attributes:
        chip: its name in a topology.
        setting: model, batch and what else was set.
        planned_bytes: arguments, temporaries and outputs as compiled without a device.
        measured_bytes: peak of the device's memory in use.
        bound_s: of a step, as planned.
        measured_s: mean of 20 steps after warm-up, the batch on the device.
    """

    chip: str
    setting: str
    planned_bytes: float
    measured_bytes: float
    bound_s: float
    measured_s: float

    @property
    def time_factor(self) -> float:
        """How many times its bound a step took."""
        return self.measured_s / self.bound_s


CHECKS = (
    Check(
        chip="h100",
        setting="ViT-B/16, batch 256, remat none, scanned",
        planned_bytes=54_450_936_204,
        measured_bytes=54.5e9,
        bound_s=0.1459,
        measured_s=256 / 1221,
    ),
    Check(
        chip="h100",
        setting="ViT-B/16, batch 512, remat dots, scanned",
        planned_bytes=29_053_653_260,
        measured_bytes=29.1e9,
        bound_s=0.2116,
        measured_s=512 / 1358,
    ),
)


def of_chip(name: str) -> tuple[Check, ...]:
    """The checks of a chip."""
    return tuple(check for check in CHECKS if check.chip == name)
