"""Devices, versions, and the limits that the operating system sets."""

import ast
import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

import clipjax
from clipjax.doctor.findings import BAD, NOTE, OK, Finding
from clipjax.plan.chips import chip_of_kind

_SIZE = 256  # of the matrices that are multiplied
# What NCCL shares between the processes of a host lies there; 64 MiB are a container's default.
_LEAST_SHM = 2**30
# Of a process: logs, sockets of the coordination service, threads that read and write files.
_LEAST_FILES = 1024
# Files that a driver makes for a device of its own.
_DRIVERS = {"a GPU of NVIDIA's": ("nvidia[0-9]*", "cuda"), "a TPU": ("accel[0-9]*", "tpu")}
# Packages that come with an accelerator, and the extra of JAX that says which version fits it.
_PLUGINS = {"libtpu": "tpu", "jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13"}


def devices(dev: Path = Path("/dev")) -> Finding:
    """Has each device of this process multiply two matrices, and says what it is."""
    own = jax.local_devices()
    matrix = np.arange(_SIZE * _SIZE).reshape(_SIZE, _SIZE) % 3 - 1  # exact in bfloat16
    for device in own:
        there = jax.device_put(matrix.astype(jnp.bfloat16), device)
        product = jnp.matmul(there, there, preferred_element_type=jnp.float32)
        if not np.array_equal(np.asarray(product), matrix @ matrix):
            return Finding(
                "devices",
                BAD,
                f"{device} multiplies wrongly: a product in bfloat16 of whole numbers is not exact",
                "take this device, or its host, out of the run",
            )
    if own[0].platform == "cpu" and (unused := _unused(dev)):
        what, extra = unused
        because = "JAX_PLATFORMS=cpu is set" if os.environ.get("JAX_PLATFORMS") == "cpu" else ""
        return Finding(
            "devices",
            NOTE if because else BAD,
            f"the host has {what}, and JAX computes on the CPU {f'({because})' * bool(because)}",
            "" if because else f"pip install 'clipjax[{extra}]', the extra that fits the driver",
        )
    return Finding("devices", OK, f"{_what(own)}; a product in bfloat16 is right on each")


def _unused(dev: Path) -> tuple[str, str] | None:
    found = [(what, extra) for what, (name, extra) in _DRIVERS.items() if list(dev.glob(name))]
    return found[0] if found else None


def _what(own: list[jax.Device]) -> str:
    first = own[0]
    parts = [f"{len(own)} x {first.device_kind} ({first.platform})"]
    parts += [f"of {jax.device_count()} in all"] * (jax.device_count() > len(own))
    memory = (first.memory_stats() or {}).get("bytes_limit") if first.platform != "cpu" else None
    parts += [f"{memory / 2**30:.1f} GiB each for programs"] if memory else []
    if (capability := getattr(first, "compute_capability", None)) is not None:
        parts.append(f"compute capability {capability}")
    if (chip := chip_of_kind(first.device_kind)) is not None:
        parts.append(f"{chip.flops / chip.devices / 1e12:.0f} TFLOP/s each at peak, in bfloat16")
    elif first.platform != "cpu":
        parts.append("its peak is not known here")
    return ", ".join(parts)


def sum_over_devices() -> Finding:
    """Adds a number of each device of the run on all of them; all processes come together."""
    count = jax.device_count()
    mesh = Mesh(np.array(jax.devices()), ("all",))
    spread = NamedSharding(mesh, PartitionSpec("all"))
    numbers = jax.make_array_from_callback(
        (count,), spread, lambda index: np.arange(count, dtype=np.float32)[index]
    )
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(numbers)
    if float(total) != count * (count - 1) / 2:
        wrong = f"the sum over all {count} devices is {float(total):g}"
        return Finding("network", BAD, wrong, "look for the host whose network is broken")
    return Finding("network", OK, f"the sum over all {count} devices is right")


def versions() -> Finding:
    """Compares what is installed with the bounds of setup.py, and of what it names."""
    own = _own_requirements()
    if own is None:
        text = "clipjax is neither installed nor in its checkout; what it needs is not known"
        return Finding("versions", NOTE, text, "pip install . in the checkout")
    direct = [r.name for r in _apply(own, "")]
    asked = [("clipjax", own, "")]
    asked += [(name, _requirements(name), "") for name in direct]
    asked += [("jax", _requirements("jax"), e) for p, e in _PLUGINS.items() if _version(p)]
    wrong = list(dict.fromkeys(text for who in asked for text in unfit(*who)))
    python = _python_bound()
    if python and not SpecifierSet(python).contains(_python()):
        wrong.insert(0, f"Python {_python()} is not {python}")
    if wrong:
        return Finding("versions", BAD, "; ".join(wrong), "pip install the versions that fit")
    shown = ", ".join(f"{n} {_version(n)}" for n in ("jax", "jaxlib", "flax", "optax", "numpy"))
    found = f"clipjax {clipjax.__version__}, Python {_python()}, {shown}; "
    return Finding("versions", OK, f"{found}{len(direct)} packages fit setup.py's bounds")


def _python() -> str:
    return platform.python_version()


def _setup() -> Path | None:
    """setup.py beside the package: a checkout is newer than what its installation noted."""
    path = Path(clipjax.__file__).parent.parent / "setup.py"
    return path if path.is_file() else None


def _own_requirements() -> list[str] | None:
    if (path := _setup()) is not None:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CORE":
                return list(ast.literal_eval(node.value))
    try:
        return importlib.metadata.requires("clipjax")
    except importlib.metadata.PackageNotFoundError:
        return None


def _python_bound() -> str:
    if (path := _setup()) is not None:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "python_requires":
                return str(ast.literal_eval(node.value))
    try:
        return importlib.metadata.metadata("clipjax")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _apply(requirements: Iterable[str], extra: str) -> Iterator[Requirement]:
    """Those that hold here; with an extra, those that only it brings."""
    for text in requirements:
        try:
            found = Requirement(text)
        except InvalidRequirement:  # of a package from before the form was fixed
            continue
        plain = found.marker is None or found.marker.evaluate({"extra": ""})
        if extra:
            if not plain and found.marker and found.marker.evaluate({"extra": extra}):
                yield found
        elif plain:
            yield found


def unfit(name: str, requirements: Iterable[str], extra: str) -> Iterator[str]:
    """What is installed and does not fit, or is missing, in words.

    Args:
        name: of the package that has the requirements.
        requirements: as its metadata has them.
        extra: only what it brings counts then; empty for what the package always needs.
    """
    for wanted in _apply(requirements, extra):
        version = _version(wanted.name)
        who = f"{name}[{extra}]" if extra else name
        if version is None and not extra:  # the extra of another accelerator's kin may be missing
            yield f"{wanted.name} is missing, and {who} needs it"
        elif version is not None and not wanted.specifier.contains(version, prereleases=True):
            yield f"{wanted.name} {version} is not {wanted.specifier}, which {who} needs"


def file_handles(num_workers: int = 0) -> Finding:
    """Compares the limit of open files with what a training opens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _LEAST_FILES + 4 * num_workers
    unlimited = soft == resource.RLIM_INFINITY
    found = f"{'any number of' if unlimited else f'{soft:,}'} open files are allowed"
    if unlimited or soft >= needed:
        return Finding("files", OK, found)
    by = (
        f"ulimit -n {needed}"
        if hard == resource.RLIM_INFINITY or hard >= needed
        else (f"have the administrator raise the hard limit, {hard:,}")
    )
    return Finding("files", BAD, f"{found}, and a training may take {needed:,}", by)


def shared_memory(processes_here: int, kind: str, path: Path = Path("/dev/shm")) -> Finding:
    """Looks at /dev/shm, which NCCL takes where the GPUs of a host belong to several processes.

    Args:
        processes_here: of the run, on this host.
        kind: the platform of the devices.
        path: the folder.
    """
    if not path.is_dir():
        free, found = 0, f"there is no {path}"
    else:
        free = shutil.disk_usage(path).free
        found = f"{path} has {free / 2**20:,.0f} MiB free"
    if kind != "gpu" or processes_here == 1:
        why = "nothing here needs it: workers share memory by files without a name"
        return Finding("shm", OK, f"{found}; {why}")
    if free >= _LEAST_SHM:
        return Finding("shm", OK, f"{found} for NCCL")
    needs = f"NCCL shares memory there between the {processes_here} processes of this host"
    return Finding("shm", BAD, f"{found}; {needs}", "docker run --shm-size=8g, or --ipc=host")


def facts() -> Mapping[str, str]:
    """What has to be the same in all processes, by name."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {f"version of {name}": _version(name) or "none" for name in packages}
    flags = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return {
        "version of clipjax": clipjax.__version__,
        "version of Python": _python(),
        **found,
        "kind of devices": jax.local_devices()[0].device_kind,
        "number of devices": str(jax.local_device_count()),
        **{f"variable {name}": value for name, value in flags.items()},
    }
