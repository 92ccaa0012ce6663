"""The chips that a plan can be made for: published figures, and how a topology is written."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torus:
    """The interconnect of a TPU pod.

    Attributes:
        axes: dimensions; two links a chip and dimension.
        link_bandwidth: bytes/s of one link in one direction.
        network_bandwidth: bytes/s of one chip in one direction to other slices, its part of the
            data-centre network; None where no figure is published.
        chip_config: how libtpu is to show the chip, where its own choice is not what a TPU VM
            shows: the two cores of a v4 are one device there, and JAX makes meshes of no others.
    """

    axes: int
    link_bandwidth: float
    network_bandwidth: float | None = None
    chip_config: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    """The interconnect of a cluster of GPU hosts: a switch in each host, a network between them.

    Attributes:
        gpus_a_host: at most.
        host_bandwidth: bytes/s of one GPU in one direction within its host (NVLink, or PCIe).
        network_bandwidth: bytes/s of one GPU in one direction to other hosts, its part of the NICs.
    """

    gpus_a_host: int
    host_bandwidth: float
    network_bandwidth: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Published figures of one chip.

    Attributes:
        name: in a topology, `name:AxBxC`.
        flops: bfloat16 FLOP/s at peak, of dense matrices.
        hbm_bytes: memory that a program may use.
        hbm_bandwidth: bytes/s.
        interconnect: a Torus for TPUs, Switches for GPUs.
        max_chips: of one pod; of GPUs, the most that a plan was tried for.
        example: a topology of a common size.
        devices: JAX devices that the topology shows a chip as.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    interconnect: Torus | Switches
    max_chips: int
    example: str
    devices: int = 1

    @property
    def is_gpu(self) -> bool:
        """Whether XLA's GPU compiler makes its programs, not libtpu."""
        return isinstance(self.interconnect, Switches)

    @property
    def compiler(self) -> str:
        """Who compiles for it."""
        return "XLA's GPU compiler" if self.is_gpu else "libtpu"


GIB = 2**30
# Of a GPU's memory, what a program may use if XLA_PYTHON_CLIENT_MEM_FRACTION says so; the rest is
# taken by CUDA's context and the workspaces of cuBLAS, cuDNN and NCCL. A step that used 0.896 of an
# H100 ran (benchmarks/results/accelerator_h100_2026-11-28.md). The second figure is JAX's choice.
GPU_MEMORY_SHARE = 0.92
GPU_DEFAULT_SHARE = 0.75
# FLOP/s, bandwidths and shapes of v4 to v6e: "How to Scale Your Model" (jax-ml.github.io/
# scaling-book/tpus), table of TPU specs; 7x: docs.cloud.google.com/tpu/docs/tpu7x, which also has
# the network between slices of v5p, v6e and 7x, a chip; that of a v5e is its pod's, 6.4 Tb/s
# (docs.cloud.google.com/tpu/docs/v5e), over 256 chips. Memory: what the compiler of libtpu 0.0.42.1
# leaves to a program, read from its refusal of one too large.
TPUS = (
    Chip(
        name="v4", flops=2.75e14, hbm_bytes=30.75 * GIB, hbm_bandwidth=1.2e12,
        interconnect=Torus(axes=3, link_bandwidth=4.5e10, chip_config="megacore"),
        max_chips=4096, example="v4:4x4x4",
    ),
    Chip(
        name="v5e", flops=1.97e14, hbm_bytes=15.75 * GIB, hbm_bandwidth=8.1e11,
        interconnect=Torus(axes=2, link_bandwidth=4.5e10, network_bandwidth=3.125e9),
        max_chips=256, example="v5e:16x16",
    ),
    Chip(
        name="v5p", flops=4.59e14, hbm_bytes=95.74 * GIB, hbm_bandwidth=2.8e12,
        interconnect=Torus(axes=3, link_bandwidth=9e10, network_bandwidth=6.25e9),
        max_chips=8960, example="v5p:8x8x8",
    ),
    Chip(
        name="v6e", flops=9.2e14, hbm_bytes=31.25 * GIB, hbm_bandwidth=1.6e12,
        interconnect=Torus(axes=2, link_bandwidth=9e10, network_bandwidth=1.25e10),
        max_chips=256, example="v6e:16x16",
    ),
    Chip(
        name="tpu7x", flops=2.307e15, hbm_bytes=189.5 * GIB, hbm_bandwidth=7.38e12,
        interconnect=Torus(axes=3, link_bandwidth=1e11, network_bandwidth=1.25e10),
        max_chips=9216, example="tpu7x:4x4x4",
        devices=2,
    ),
)  # fmt: skip
# FLOP/s (dense, half of the figure with sparsity), bandwidths and NVLink (half of the sum of both
# directions) of the SXM modules: NVIDIA's data sheets of the A100 (2022), H100 and H200 (2024), L4
# (2023; PCIe 4.0 x16). Network: a 400 Gb/s NIC for each GPU of a DGX H100 and H200, 200 Gb/s of a
# DGX A100, after their user guides; for the L4, an eighth of the 100 Gb/s of a Google Cloud
# g2-standard-96. Memory: CUDA's totalGlobalMem (clipjax.plan.gpu) times GPU_MEMORY_SHARE.
GPUS = (
    Chip(
        name="h100", flops=9.89e14, hbm_bytes=GPU_MEMORY_SHARE * 84_942_979_072,
        hbm_bandwidth=3.35e12,
        interconnect=Switches(gpus_a_host=8, host_bandwidth=4.5e11, network_bandwidth=5e10),
        max_chips=1024, example="h100:32x8",
    ),
    Chip(
        name="h200", flops=9.89e14, hbm_bytes=GPU_MEMORY_SHARE * 151_397_597_184,
        hbm_bandwidth=4.8e12,
        interconnect=Switches(gpus_a_host=8, host_bandwidth=4.5e11, network_bandwidth=5e10),
        max_chips=1024, example="h200:8",
    ),
    Chip(
        name="a100", flops=3.12e14, hbm_bytes=GPU_MEMORY_SHARE * 85_100_068_864,
        hbm_bandwidth=2.039e12,
        interconnect=Switches(gpus_a_host=16, host_bandwidth=3e11, network_bandwidth=2.5e10),
        max_chips=1024, example="a100:8",
    ),
    Chip(
        name="a100_40", flops=3.12e14, hbm_bytes=GPU_MEMORY_SHARE * 42_331_013_120,
        hbm_bandwidth=1.555e12,
        interconnect=Switches(gpus_a_host=16, host_bandwidth=3e11, network_bandwidth=2.5e10),
        max_chips=1024, example="a100_40:8",
    ),
    Chip(
        name="l4", flops=1.21e14, hbm_bytes=GPU_MEMORY_SHARE * 23_612_293_120,
        hbm_bandwidth=3e11,
        interconnect=Switches(gpus_a_host=8, host_bandwidth=3.2e10, network_bandwidth=1.5625e9),
        max_chips=1024, example="l4:1",
    ),
)  # fmt: skip
CHIPS: dict[str, Chip] = {chip.name: chip for chip in (*TPUS, *GPUS)}
# What JAX calls the devices (`jax.Device.device_kind`); a GPU is called as by its driver.
KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
    "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-SXM4-40GB": "a100_40", "NVIDIA L4": "l4",
}  # fmt: skip
ALIASES = {"7x": "tpu7x", "v7x": "tpu7x", "a100_80": "a100"}


def parse_topology(name: str) -> tuple[str, Chip, tuple[int, ...], int]:
    """Checks the name of a topology and returns it with its chip and shape.

    Args:
        name: `chip:shape`. The shape of a TPU slice has a size for each axis of its torus, and
            `x2slices` behind it for two slices; that of GPUs is `GPUs` of one host or `HOSTSxGPUS`.

    Returns:
        (the name as it is written, its chip, the shape of one slice; of GPUs always (hosts, GPUs a
        host); the number of slices).

    Raises:
        ValueError: an unknown chip or a shape that it does not come in; the message lists them.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*?)(?:x(\d+)slices?)?", name.strip().lower())
    kind = ALIASES.get(match[1], match[1]) if match else ""
    if match is None or kind not in CHIPS:
        raise ValueError(f"--topology={name!r} is unknown; write chip:shape, {known_topologies()}")
    chip, shape = CHIPS[kind], tuple(int(size) for size in match[2].split("x"))
    interconnect = chip.interconnect
    if isinstance(interconnect, Switches):
        shape = (1, *shape) if len(shape) == 1 else shape
        if len(shape) != 2 or 0 in shape or shape[1] > interconnect.gpus_a_host:
            raise ValueError(
                f"--topology={name!r}: write {chip.name}:GPUS for one host or "
                f"{chip.name}:HOSTSxGPUS, at most {interconnect.gpus_a_host} GPUs a host, such as "
                f"{chip.name}:1 or {chip.name}:4x8; {known_topologies()}"
            )
    elif len(shape) != interconnect.axes or 0 in shape:
        raise ValueError(
            f"--topology={name!r}: {chip.name} is a torus of {interconnect.axes} dimensions, "
            f"such as {chip.example}; {known_topologies()}"
        )
    if math.prod(shape) > chip.max_chips:
        what = "plans are made for" if chip.is_gpu else f"one pod of {chip.name} has"
        raise ValueError(
            f"--topology={name!r} has {math.prod(shape)} chips; {what} at most {chip.max_chips}"
        )
    written = f"{chip.name}:{match[2]}"
    if match[3] is None or match[3] == "1":
        return written, chip, shape, 1
    if isinstance(interconnect, Switches) or interconnect.network_bandwidth is None:
        have = ", ".join(
            c.name for c in TPUS if isinstance(t := c.interconnect, Torus) and t.network_bandwidth
        )
        raise ValueError(
            f"--topology={name!r}: several slices are planned for TPUs whose bandwidth between "
            f"slices is published: {have}"
        )
    if int(match[3]) == 0:
        raise ValueError(f"--topology={name!r}: one slice is written {written}")
    return f"{written}x{match[3]}slices", chip, shape, int(match[3])


def chip_of_kind(device_kind: str) -> Chip | None:
    """The chip of a device by JAX's name of its kind; None where no figures of it are here."""
    name = KINDS.get(device_kind)
    return None if name is None else CHIPS[name]


def known_topologies() -> str:
    """Examples of all chips, for messages."""
    rows = (f"{c.example} (up to {c.max_chips} chips)" for c in TPUS)
    return f"for example {', '.join(rows)}; GPUs: {', '.join(c.example for c in GPUS)}"
