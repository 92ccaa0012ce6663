"""The chips a plan can be made for, and the topologies that libtpu compiles for without one."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Published figures of one TPU chip.

    Attributes:
        name: in a topology, `name:AxBxC`.
        flops: bfloat16 FLOP/s at peak.
        hbm_bytes: memory that a program may use, as libtpu's compiler refuses beyond it.
        hbm_bandwidth: bytes/s.
        link_bandwidth: bytes/s of one interconnect link in one direction.
        torus_axes: dimensions of the interconnect; two links a chip and dimension.
        max_chips: of one pod.
        devices: JAX devices that libtpu's topology shows a chip as.
        example: a topology of a common size.
        chip_config: how libtpu is to show the chip, where its own choice is not what a TPU VM
            shows: the two cores of a v4 are one device there, and JAX makes meshes of no others.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    torus_axes: int
    max_chips: int
    devices: int
    example: str
    chip_config: str | None = None


GIB = 2**30
# FLOP/s, bandwidths and shapes of v4 to v6e: "How to Scale Your Model" (jax-ml.github.io/
# scaling-book/tpus), table of TPU specs; 7x: docs.cloud.google.com/tpu/docs/tpu7x. Memory: what
# the compiler of libtpu 0.0.42.1 leaves to a program, read from its refusal of one too large.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4", flops=2.75e14, hbm_bytes=30.75 * GIB, hbm_bandwidth=1.2e12,
            link_bandwidth=4.5e10, torus_axes=3, max_chips=4096, devices=1, example="v4:4x4x4",
            chip_config="megacore",
        ),
        Chip(
            name="v5e", flops=1.97e14, hbm_bytes=15.75 * GIB, hbm_bandwidth=8.1e11,
            link_bandwidth=4.5e10, torus_axes=2, max_chips=256, devices=1, example="v5e:16x16",
        ),
        Chip(
            name="v5p", flops=4.59e14, hbm_bytes=95.74 * GIB, hbm_bandwidth=2.8e12,
            link_bandwidth=9e10, torus_axes=3, max_chips=8960, devices=1, example="v5p:8x8x8",
        ),
        Chip(
            name="v6e", flops=9.2e14, hbm_bytes=31.25 * GIB, hbm_bandwidth=1.6e12,
            link_bandwidth=9e10, torus_axes=2, max_chips=256, devices=1, example="v6e:16x16",
        ),
        Chip(
            name="tpu7x", flops=2.307e15, hbm_bytes=189.5 * GIB, hbm_bandwidth=7.38e12,
            link_bandwidth=1e11, torus_axes=3, max_chips=9216, devices=2, example="tpu7x:4x4x4",
        ),
    )
}  # fmt: skip
_LIBTPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
ALIASES = {"7x": "tpu7x", "v7x": "tpu7x"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a pod.

    Attributes:
        name: as libtpu takes it, "v5e:16x16".
        chip: its chips.
        num_chips: how many.
        devices: JAX devices, compile-only.
        num_hosts: processes that drive them.
    """

    name: str
    chip: Chip
    num_chips: int
    devices: tuple[Any, ...]
    num_hosts: int


def parse_topology(name: str) -> tuple[str, Chip, tuple[int, ...]]:
    """Checks the name of a topology and returns it with its chip and shape.

    Raises:
        ValueError: an unknown chip or a shape that it does not come in; the message lists them.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name.strip().lower())
    kind = ALIASES.get(match[1], match[1]) if match else ""
    if match is None or kind not in CHIPS:
        raise ValueError(f"--topology={name!r} is unknown; write chip:shape, {_known()}")
    chip, shape = CHIPS[kind], tuple(int(size) for size in match[2].split("x"))
    if len(shape) != chip.torus_axes or 0 in shape:
        raise ValueError(
            f"--topology={name!r}: {chip.name} is a torus of {chip.torus_axes} dimensions, "
            f"such as {chip.example}; {_known()}"
        )
    if math.prod(shape) > chip.max_chips:
        raise ValueError(
            f"--topology={name!r} has {math.prod(shape)} chips; one pod of {chip.name} has at most "
            f"{chip.max_chips}, and a plan is for one pod"
        )
    return f"{chip.name}:{match[2]}", chip, shape


def _known() -> str:
    rows = (f"{c.example} (up to {c.max_chips} chips)" for c in CHIPS.values())
    return "for example " + ", ".join(rows)


def make_topology(name: str) -> Topology:
    """Asks libtpu for the compile-only devices of a topology; no TPU is needed or touched.

    Raises:
        ValueError: libtpu is missing, or does not know the topology.
    """
    name, chip, shape = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "a plan compiles with libtpu, which is not installed: pip install 'clipjax[tpu]' "
            "(it needs no TPU)"
        )
    # Nothing here opens a chip: neither look for one, nor wait for another process's lock on it.
    for key, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import jax
    from jax.experimental import topologies

    if getattr(jax.config, "jax_platforms", None) is None:
        jax.config.update("jax_platforms", "cpu")
    try:
        options = {"chip_config_name": chip.chip_config} if chip.chip_config else {}
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).split(":", 1)[-1].strip()
        raise ValueError(f"--topology={name!r}: libtpu refuses it: {reason}; {_known()}") from error
    devices: tuple[Any, ...] = tuple(description.devices)
    hosts = len({device.process_index for device in devices})
    return Topology(name, chip, math.prod(shape), devices, hosts)
