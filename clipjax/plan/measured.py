"""Plans that were held against a run on the device: how far their figures were from it.

The planned figures are those of the step that was measured, compiled by the same JAX without a GPU
and counted as a plan counts today. The tests hold them against the rows of FILE.
"""

import dataclasses

DEVICE = "one H100 80GB SXM"
WHEN = "2026-11-28, jax 0.11.2, CUDA 13"
# A plan of today's tree is of another step, which moves less.
STEPS = "steps of tree 2e4ad6c, layers scanned, attention by XLA"
FILE = "benchmarks/results/plan_checked_h100_2026-11-28.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One setting, planned and measured, of one device.

    Attributes:
        chip: its name in a topology.
        setting: model, batch and what else was set.
        compiled_by: with which choices.
        planned_bytes: arguments, temporaries and outputs as compiled without a device.
        measured_bytes: peak of the device's memory in use.
        bound_s: of a step, as planned.
        measured_s: mean of 20 steps after warm-up, the batch on the device.
    """

    chip: str
    setting: str
    compiled_by: str
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
        compiled_by="jax 0.11.2",
        planned_bytes=54_450_936_204,
        measured_bytes=54.5e9,
        bound_s=0.1459,
        measured_s=256 / 1221,
    ),
    Check(
        chip="h100",
        setting="ViT-B/16, batch 512, remat dots, scanned",
        compiled_by="jax 0.11.2",
        planned_bytes=29_053_653_260,
        measured_bytes=29.1e9,
        bound_s=0.2116,
        measured_s=512 / 1358,
    ),
    # Its traffic, and so its bound, is on record without Triton GEMM alone.
    Check(
        chip="h100",
        setting="ViT-B/32, batch 1,024, remat none, scanned",
        compiled_by="jax 0.11.2, Triton GEMM off",
        planned_bytes=75.25e9,
        measured_bytes=76.1e9,
        bound_s=0.2143,
        measured_s=1024 / 3635,
    ),
)


def of_chip(name: str) -> tuple[Check, ...]:
    """The checks of a chip."""
    return tuple(check for check in CHECKS if check.chip == name)
