"""Flags of XLA that a program is compiled with, by platform, each with its reason and its effect.

They go to the compiler with the program, not into the environment: others of the process do not see
them. docs/performance.md has the effects, and what was tried and left out.
"""

import functools
import os
import platform as host
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax

ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Variables that a user sets flags in."""


class Flag(NamedTuple):
    """A flag of XLA.

    Attributes:
        value: that it is given.
        several: whether it is for several devices only.
        reason: why, and what it was seen to do.
        program: `step`, of training, or `encoding`, whose numbers may differ by rounding.
        machines: of `platform.machine()`, where it is for some.
        dtypes: of the computation, where it is for some.
    """

    value: bool | int | str
    several: bool
    reason: str
    program: str = "step"
    machines: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()


FLAGS: dict[str, dict[str, Flag]] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": Flag(
            "",
            False,
            "products and convolutions by Eigen with oneDNN's inner kernel, in place of YNNPACK: "
            "0.8 of the time of the towers of ViT-B/32 and RN50. Not for a step, whose numbers "
            "would change",
            program="encoding",
            machines=("x86_64", "AMD64"),
            dtypes=("float32",),
        ),
    },
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
    return _flags("step", platform, num_devices, environment)


def encoding_flags(
    platform: str,
    num_devices: int,
    environment: Mapping[str, str] | None = None,
    *,
    dtype: str = "float32",
) -> dict[str, bool | int | str]:
    """Flags of embeddings and tokens: as `step_flags`, without those that this XLA lacks.

    Args:
        platform, num_devices, environment: as for `step_flags`.
        dtype: of the computation.
    """
    found = _flags("encoding", platform, num_devices, environment, dtype)
    return {name: value for name, value in found.items() if is_known(name, value)}


def _flags(
    program: str,
    platform: str,
    num_devices: int,
    environment: Mapping[str, str] | None,
    dtype: str | None = None,
) -> dict[str, bool | int | str]:
    environment = os.environ if environment is None else environment
    given = " ".join(environment.get(name, "") for name in ENVIRONMENT)
    by_user = set(re.findall(r"--(?:no)?(\w+)", given))
    return {
        name: flag.value
        for name, flag in FLAGS[platform].items()
        if flag.program == program
        and name not in by_user
        and (num_devices > 1 or not flag.several)
        and (not flag.machines or host.machine() in flag.machines)
        and (not flag.dtypes or dtype in flag.dtypes)
    }


@functools.cache
def is_known(name: str, value: bool | int | str) -> bool:
    """Whether XLA has a flag: one that is experimental may go."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
