"""The platform that a computation is made for, which what differs between platforms asks for."""

import jax
from jax.sharding import AbstractMesh, Mesh


def platform_of(mesh: Mesh | AbstractMesh | None = None) -> str:
    """The platform of a mesh's devices, which may be absent ones that a program is compiled for.

    Args:
        mesh: of the computation. None, or one of axes alone: the mesh of the context, and where
            there is none, JAX's default backend.

    Returns:
        "cpu", "gpu" or "tpu"; what is none of them counts as a CPU, whose path is the plain one.
    """
    for found in (mesh, jax.sharding.get_abstract_mesh()):
        if found is None or found.empty:
            continue
        device = found.devices.flat[0] if isinstance(found, Mesh) else found.abstract_device
        if device is not None:
            return _named(device.platform)
    return _named(jax.default_backend())


def _named(platform: str) -> str:
    names = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu", "rocm": "gpu"}
    return names.get(platform, "cpu")
