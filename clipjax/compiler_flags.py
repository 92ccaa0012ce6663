"""Flags of XLA that a step is compiled with, by platform, each with its reason and its effect.

They go to the compiler with the step, not into the environment: other programs of the process do
not see them. docs/performance.md has the effects, and what was tried and left out.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Variables that a user sets flags in."""


class Flag(NamedTuple):
    """A flag of XLA.

    Attributes:
        value: that it is given.
        several: whether it is for several devices only.
        reason: why, and what it was seen to do.
    """

    value: bool | int | str
    several: bool
    reason: str


FLAGS: dict[str, dict[str, Flag]] = {
    "cpu": {},
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": Flag(
            True,
            True,
            "gradients are summed while the backward pass goes on; said, and not left to a default "
            "that has changed between releases",
        ),
    },
    "tpu": {},
}


def step_flags(
    platform: str, num_devices: int, environment: Mapping[str, str] | None = None
) -> dict[str, bool | int | str]:
    """Flags of a step, without those that the user has set.

    Args:
        platform: of `clipjax.platforms.platform_of`.
        num_devices: that the step runs on.
        environment: None is that of the process.
    """
    environment = os.environ if environment is None else environment
    given = " ".join(environment.get(name, "") for name in ENVIRONMENT)
    by_user = set(re.findall(r"--(?:no)?(\w+)", given))
    return {
        name: flag.value
        for name, flag in FLAGS[platform].items()
        if name not in by_user and (num_devices > 1 or not flag.several)
    }
