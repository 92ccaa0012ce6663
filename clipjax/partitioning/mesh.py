"""The mesh of devices, and how a batch lies on it."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from clipjax.ranges import FieldError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def mesh_shape(axis_sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Resolves the one -1 of a mesh and checks it against the devices.

    Raises:
        ValueError: an unknown axis, or a product that is not the number of devices.
    """
    unknown = set(axis_sizes) - set(MESH_AXES)
    if unknown:
        raise FieldError(f"mesh.{sorted(unknown)[0]}: axes are {', '.join(MESH_AXES)}")
    sizes = {axis: int(axis_sizes.get(axis, 1)) for axis in MESH_AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) == 1 and num_devices % known == 0:
        sizes[free[0]] = num_devices // known
    if len(free) > 1 or math.prod(sizes.values()) != num_devices:
        raise FieldError(
            f"mesh = {dict(axis_sizes)} does not fit {num_devices} devices; "
            "the product of the axes must be their number (one axis may be -1)"
        )
    return sizes


def slices_of(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices by slice, whose own network is faster than the one between slices.

    A slice is one of TPUs, or what JAX takes for one elsewhere: hosts whose GPUs share NVLink.
    """
    found: dict[int, list[jax.Device]] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    return [found[index] for index in sorted(found)]


def make_mesh(axis_sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh (data, fsdp, tensor); one size may be -1, for the rest of the devices.

    A mesh axis lies along whole axes of a TPU's torus where the sizes allow it, so that its rings
    close; else the torus axes are split. Of several slices, `data` counts the slices first and
    within each of them then, so that gradients are summed in a slice before they leave it, and what
    `fsdp` and `tensor` move stays inside (docs/sharding.md).

    Raises:
        ValueError: sizes that do not fit the devices, or fsdp and tensor that do not fit a slice.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_shape(axis_sizes, len(devices))
    slices = slices_of(devices)
    alike = len({len(members) for members in slices}) == 1
    if not alike or sizes["data"] % len(slices):
        if devices[0].platform == "tpu":
            raise FieldError(
                f"mesh = {sizes}: the devices are {len(slices)} slices of "
                f"{' and '.join(str(len(members)) for members in slices)}; data has to be a "
                "multiple of their number, so that fsdp x tensor fits into one slice"
            )
        slices = [devices]  # GPUs: NCCL finds its own way between hosts
    inside = (sizes["data"] // len(slices), sizes["fsdp"], sizes["tensor"])
    placed = np.concatenate(
        [
            mesh_utils.create_device_mesh(inside, members, allow_split_physical_axes=True)
            for members in slices
        ]
    )
    return Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first dimension over the axes data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def num_batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def place(value: np.ndarray | jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that this process holds whole to a sharding, of other processes' devices too.

    Every process calls it, with the same value; each gives its own devices their parts.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    # device_put copies an array of one process's devices to another's on few backends only.
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of this process's rows of a batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
