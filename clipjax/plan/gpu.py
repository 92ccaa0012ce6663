"""XLA's GPU compiler without a GPU: its devices, its options, and what JAX would ask a device.

XLA compiles for a GPU that is described to it by the properties that CUDA reports; no driver is
opened. The compiler is that of JAX's CUDA plug-in.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from clipjax.plan.chips import Chip

PLUGINS = ("xla_cuda13", "xla_cuda12")
# What only a device can settle is the choice of kernels: the autotuner times them. Without it the
# compiler of JAX 0.11 writes products as Triton GEMM fusions of its first choice; of 0.10 some find
# no tile sizes, and it leaves all products to cuBLAS when it is told to.
COMPILER_OPTIONS: dict[str, Any] = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
}
CUDNN = (9, 10)
# Where JAX 0.10 to 0.12 asks the local GPU while it traces cuDNN attention.
ASKS = "jax._src.cudnn.fused_attention_stablehlo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Properties:
    """What CUDA's cudaDeviceProp says of a GPU.

    Attributes:
        name: of the product.
        capability: compute capability.
        cores: multiprocessors.
        fpus: float32 units of a multiprocessor.
        clock_ghz: at most.
        memory: totalGlobalMem, bytes.
        bandwidth: of the memory, bytes/s: 2 x memory clock x bus width.
        l2: cache, bytes.
        shared: memory of a multiprocessor, bytes; a block may ask for 1,024 bytes less.
        threads: of a multiprocessor.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    fpus: int
    clock_ghz: float
    memory: int
    bandwidth: int
    l2: int
    shared: int
    threads: int = 2048


# As CUDA's deviceQuery prints them; for the A100, H100 and H200 also the device descriptions of
# openxla/xla (xla/backends/gpu/target_config/specs). Limits by capability: "Compute Capabilities"
# of the CUDA programming guide.
PROPERTIES = {
    "h100": Properties(
        name="NVIDIA H100 80GB HBM3", capability=(9, 0), cores=132, fpus=128, clock_ghz=1.98,
        memory=84_942_979_072, bandwidth=3_352_320_000_000, l2=52_428_800, shared=233_472,
    ),
    "h200": Properties(
        name="NVIDIA H200", capability=(9, 0), cores=132, fpus=128, clock_ghz=1.98,
        memory=151_397_597_184, bandwidth=4_800_000_000_000, l2=52_428_800, shared=233_472,
    ),
    "a100": Properties(
        name="NVIDIA A100-SXM4-80GB", capability=(8, 0), cores=108, fpus=64, clock_ghz=1.41,
        memory=85_100_068_864, bandwidth=2_039_040_000_000, l2=41_943_040, shared=167_936,
    ),
    "a100_40": Properties(
        name="NVIDIA A100-SXM4-40GB", capability=(8, 0), cores=108, fpus=64, clock_ghz=1.41,
        memory=42_331_013_120, bandwidth=1_555_200_000_000, l2=41_943_040, shared=167_936,
    ),
    "l4": Properties(
        name="NVIDIA L4", capability=(8, 9), cores=58, fpus=128, clock_ghz=2.04,
        memory=23_612_293_120, bandwidth=300_048_000_000, l2=50_331_648, shared=102_400,
        threads=1536,
    ),
}  # fmt: skip


def target_config(properties: Properties) -> str:
    """The description that the compiler takes, a GpuTargetConfigProto in text."""
    major, minor = properties.capability
    values = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": properties.shared,
        "shared_memory_per_block_optin": properties.shared - 1024,
        "threads_per_core_limit": properties.threads,
        "core_count": properties.cores,
        "fpus_per_core": properties.fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": properties.bandwidth,
        "l2_cache_size": properties.l2,
        "clock_rate_ghz": properties.clock_ghz,
        "device_memory_size": properties.memory,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    info = " ".join(f"{key}: {value}" for key, value in values.items())
    return (
        f"gpu_device_info {{ {info} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }} '
        f'runtime_version {{ major: 12 minor: 9 }} device_description_str: "{properties.name}"'
    )


def option_sets() -> tuple[dict[str, Any], ...]:
    """Options of the compiler to try, the first that compiles is taken."""
    version = importlib.metadata.version("jax")
    older = tuple(int(part) for part in version.split(".")[:2]) < (0, 11)
    return (COMPILER_OPTIONS,) if older else ({}, COMPILER_OPTIONS)


def unsettled(options: Mapping[str, Any]) -> str:
    """What the page says of the choices that a device would make."""
    text = "Not settled without a device: which kernels are fastest (autotuning)"
    if options:
        text += "; Triton GEMM fusions are off here, a run has them on"
    else:
        text += ", and which products are Triton GEMM fusions and with which tiles"
    return f"{text}."


def missing_package() -> tuple[str, str]:
    """What is not installed and the extra that brings it; empty where JAX's plug-in is there."""
    if importlib.util.find_spec("jax_plugins") is not None:
        for plugin in PLUGINS:
            if importlib.util.find_spec(f"jax_plugins.{plugin}") is not None:
                return "", ""
    return "XLA's GPU compiler (JAX's CUDA plug-in)", "cuda"


def devices(chip: Chip, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Compile-only devices of hosts with GPUs.

    Args:
        chip: the GPU.
        shape: (hosts, GPUs a host).
    """
    from jax.experimental import topologies

    hosts, gpus = shape
    # The plug-in would ask a driver for the versions of CUDA's libraries.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    description = topologies.get_topology_desc(
        platform="cuda",
        topology_name=chip.name,
        target_config=target_config(PROPERTIES[chip.name]),
        topology=f"1x{hosts}x{gpus}",  # slices x hosts x GPUs
    )
    return tuple(description.devices)


@contextlib.contextmanager
def answering_for(chip: Chip) -> Iterator[None]:
    """Within it, cuDNN attention is traced for a GPU that is not there; nothing for other chips.

    JAX asks the local device what it can do while it traces the attention; here the properties
    answer.

    Raises:
        ValueError: this JAX asks elsewhere, and the trace failed.
    """
    if not chip.is_gpu:
        yield
        return
    capability = PROPERTIES[chip.name].capability

    def of(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    answers = {
        "check_compute_capability": lambda wanted: capability >= of(wanted),
        "is_cuda_compute_capability_equal": lambda wanted: capability == of(wanted),
        "check_cudnn_version": lambda: CUDNN[0] * 10_000 + CUDNN[1] * 100,
    }
    try:
        attention: Any = importlib.import_module(ASKS)
    except ImportError:
        attention = None
    found = {name: getattr(attention, name) for name in answers if hasattr(attention, name)}
    for name in found:
        setattr(attention, name, answers[name])
    try:
        yield
    except Exception as error:
        if missing := sorted(answers.keys() - found.keys()):
            raise ValueError(
                f"jax {importlib.metadata.version('jax')} has no {', '.join(missing)} in {ASKS}: "
                "it asks a GPU elsewhere while it traces cuDNN attention, and a plan cannot answer "
                "for one that is not there. Plan with a JAX that setup.py names, or with "
                f"--config.attention=xla. The trace said: {error}"
            ) from error
        raise
    finally:
        for name, value in found.items():
            setattr(attention, name, value)
