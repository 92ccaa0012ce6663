"""XLA_FLAGS of this process and of those it starts: devices, quick compilations, patience."""

import os
from importlib.metadata import version

COUNT = "--xla_force_host_platform_device_count"
# XLA aborts a process of which one simulated device is 40 s late at a collective, as on a machine
# that others use.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=3600"
# A step compiles in a third of the time and less: loops by the older emitters, in one module of
# LLVM's and not in 32. Newer XLA knows no older emitters, and ends a process that asks for them.
QUICK = [PATIENT, "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")


def with_flags(*flags: str) -> str:
    """The flags of this process, and these in place of what they were before."""
    names = {flag.partition("=")[0] for flag in flags}
    kept = [x for x in os.environ.get("XLA_FLAGS", "").split() if x.partition("=")[0] not in names]
    return " ".join([*kept, *flags])


def with_devices(count: int) -> str:
    """The flags of this process with so many simulated devices."""
    return with_flags(f"{COUNT}={count}")
