"""How a config's step runs on the devices of its mesh: decided once, when these are known."""

from typing import Any

from jax.sharding import Mesh

from clipjax.config_fields import Settings
from clipjax.layers.execution import Execution
from clipjax.platforms import platform_of

_LEAST_CAPABILITY = 8.0  # of an NVIDIA GPU, for cuDNN's attention


def choose_execution(settings: Settings, mesh: Mesh) -> Execution:
    """Decides how the towers run.

    Args:
        settings: their `attention`, `scan_layers` and `remat`.
        mesh: of the devices, which may be absent (a plan).
    """
    device = mesh.devices.flat[0]
    platform = platform_of(mesh)
    attention = settings.attention
    if attention == "auto" and platform == "gpu" and not _has_cudnn_attention(device):
        attention = "xla"
    return Execution(
        platform=platform,
        attention=attention,
        scan=settings.scan_layers,
        remat=settings.remat,
    )


def _has_cudnn_attention(device: Any) -> bool:
    """Whether a GPU is NVIDIA's, of the generation that the kernels are for."""
    capability = getattr(device, "compute_capability", None)
    try:
        return capability is None or float(capability) >= _LEAST_CAPABILITY
    except ValueError:  # AMD's have names
        return False
