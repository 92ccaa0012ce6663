"""The compile-only devices of a topology: made by libtpu or XLA's GPU compiler, without a chip."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

from clipjax.plan import gpu
from clipjax.plan.chips import Chip, Torus, known_topologies, parse_topology

_LIBTPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a pod, several slices, or GPU hosts.

    Attributes:
        name: as it is written, "v5e:16x16", "v5e:16x16x2slices", "h100:32x8".
        chip: its chips.
        num_chips: how many.
        devices: JAX devices, compile-only.
        num_hosts: that drive them.
        num_slices: that the chips are of.
    """

    name: str
    chip: Chip
    num_chips: int
    devices: tuple[Any, ...]
    num_hosts: int
    num_slices: int = 1


def make_topology(name: str) -> Topology:
    """Asks a compiler for the compile-only devices of a topology; no chip or driver is touched.

    Raises:
        ValueError: the compiler is not installed, or does not know the topology.
    """
    name, chip, shape, num_slices = parse_topology(name)
    package, extra = gpu.missing_package() if chip.is_gpu else _missing_libtpu()
    if package:
        raise ValueError(
            f"a plan for {chip.name} compiles with {package}, which is not installed: "
            f"pip install 'clipjax[{extra}]' (it needs no {'GPU' if chip.is_gpu else 'TPU'})"
        )
    import jax

    # Nothing here opens a chip: neither look for one, nor wait for another process's lock on it.
    if getattr(jax.config, "jax_platforms", None) is None:
        jax.config.update("jax_platforms", "cpu")
    try:
        if isinstance(chip.interconnect, Torus):
            one = name.removesuffix(f"x{num_slices}slices")
            devices = _tpu_devices(one, chip.interconnect, num_slices)
        else:
            devices = gpu.devices(chip, shape)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).split(":", 1)[-1].strip()
        raise ValueError(
            f"--topology={name!r}: {chip.compiler} refuses it: {reason}; {known_topologies()}"
        ) from error
    hosts = len({device.process_index for device in devices})
    return Topology(name, chip, math.prod(shape) * num_slices, devices, hosts, num_slices)


def _missing_libtpu() -> tuple[str, str]:
    return ("", "") if importlib.util.find_spec("libtpu") else ("libtpu", "tpu")


def _tpu_devices(name: str, torus: Torus, num_slices: int) -> tuple[Any, ...]:
    for key, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if torus.chip_config:
        options["chip_config_name"] = torus.chip_config
    description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return tuple(description.devices)
