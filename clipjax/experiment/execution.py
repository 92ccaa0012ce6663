"""How a config's step runs on the devices of its mesh: decided once, when these are known."""

import dataclasses

import jax
from jax.sharding import Mesh

from clipjax.config_fields import Settings
from clipjax.experiment.memory import Setting, Step, describes, predicted_bytes
from clipjax.experiment.stages import is_unrolled
from clipjax.layers.attention import attention_on
from clipjax.layers.execution import Execution
from clipjax.layers.remat import REMAT
from clipjax.platforms import platform_of

# What the model may say that a step needs, of the memory: it says up to a tenth more than the
# compiler does, or less. A row that does not fit costs a compilation, one passed over the run.
ROOM = 1.1


def choose_execution(settings: Settings, mesh: Mesh) -> Execution:
    """Decides how the towers run.

    Args:
        settings: their `attention`, `scan_layers` and `remat`; of `remat = auto` see
            `rows_that_fit`.
        mesh: of the devices, which may be absent (a plan).
    """
    platform = platform_of(mesh)
    return Execution(
        platform=platform,
        attention=attention_on(mesh.devices.flat[0], platform, settings.attention),
        unroll=0 if has_no_loop(settings, platform) else settings.scan_unroll,
        apart=platform == "cpu" and is_unrolled(settings),
        row_major=platform == "gpu",
        remat="none" if settings.remat == "auto" else settings.remat,
        pooled_only=platform != "cpu",  # where a step's numbers stay to the bit
    )


def has_no_loop(settings: Settings, platform: str) -> bool:
    """Whether the blocks run without a scan.

    Without its loop a step on a GPU does not stack what the backward pass is left; XLA for TPUs and
    for CPUs does not gain by it.
    """
    return is_unrolled(settings) or (settings.scan_layers == "auto" and platform == "gpu")


def rows_that_fit(
    step: Step, setting: Setting, memory_bytes: float | None, *, platform: str
) -> tuple[str, ...]:
    """The rows of recomputation that should fit a device's memory, the fastest first.

    Args:
        step: sizes of the largest stage.
        setting: all but its remat counts.
        memory_bytes: of one device; None where it is not known.
        platform: of the devices.

    Returns:
        At least one; `full` where none should fit, `none` where the memory is not known.
    """
    if memory_bytes is None:
        return ("none",)
    if not describes(step.spec):
        return ("none", "full") if platform == "cpu" else ("none", "dots", "full")
    rows = [
        row
        for row in REMAT
        if predicted_bytes(step, dataclasses.replace(setting, remat=row)) < ROOM * memory_bytes
    ]
    return tuple(rows) or ("full",)


def memory_of(mesh: Mesh) -> int | None:
    """Bytes that a program may use of one device of a mesh; None for a CPU or an absent device."""
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    try:
        stats = own[0].memory_stats() if own else None
    except jax.errors.JaxRuntimeError:
        return None
    return (stats or {}).get("bytes_limit")
