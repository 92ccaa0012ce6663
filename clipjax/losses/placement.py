"""Where a loss finds its embeddings: global arrays over a mesh, or slices inside a shard_map."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from clipjax.array_types import Array
from clipjax.losses.equal_rows import Keys
from clipjax.losses.layouts import BatchDevices
from clipjax.platforms import platform_of

DEFAULT_BATCH_AXES = ("data", "fsdp")

# (image_embeds, text_embeds, logit_scale, logit_bias, keys)
Inputs = tuple[Array, Array, Array, Array | None, Keys | None]


@dataclasses.dataclass(frozen=True)
class GlobalArrays:
    """The embeddings are arrays of the global batch, cut over a mesh or on one device."""

    mesh: Mesh | AbstractMesh | None
    devices: BatchDevices

    @property
    def platform(self) -> str:
        """What the loss runs on: cpu, gpu or tpu."""
        return platform_of(self.mesh)

    def batch_size(self, image_embeds: Array) -> int:
        """The global batch."""
        size = image_embeds.shape[0]
        if size % self.devices.num_devices:
            raise ValueError(
                f"the global batch is {size}; it must be a multiple of the "
                f"{self.devices.num_devices} devices of the mesh axes {self.devices.axes}"
            )
        return size

    def shard(self, inputs: Inputs) -> Inputs:
        """Lays the batch over its axes where the mesh leaves that to us: its Explicit axes."""
        mesh, explicit = self.mesh, _explicit_axes(self.mesh)
        axes = tuple(axis for axis in self.devices.axes if axis in explicit)
        if mesh is None or not explicit:
            return inputs

        def lay(x: Array, spec: PartitionSpec) -> Array:
            return jax.sharding.reshard(x, NamedSharding(mesh, spec))

        image, text, scale, bias, keys = inputs
        rows, whole = PartitionSpec(axes) if axes else PartitionSpec(), PartitionSpec()
        bias = None if bias is None else lay(bias, whole)
        keys = jax.tree.map(lambda x: lay(x, rows), keys)
        return lay(image, rows), lay(text, rows), lay(scale, whole), bias, keys

    def run_dense(self, function: Callable[..., Any], inputs: Inputs) -> Any:
        """Runs a function of the whole batch; its results are scalars."""
        explicit = _explicit_axes(self.mesh)
        if self.mesh is not None and explicit:
            # What is written for one device names no shardings, and XLA's partitioner chooses.
            replicated = NamedSharding(self.mesh, PartitionSpec())
            function = jax.sharding.auto_axes(function, axes=explicit, out_sharding=replicated)
        return function(*inputs)


@dataclasses.dataclass(frozen=True)
class LocalSlices:
    """The embeddings are this device's slice of the batch, inside a shard_map."""

    devices: BatchDevices
    mesh: None = None

    @property
    def platform(self) -> str:
        """What the loss runs on: cpu, gpu or tpu."""
        return platform_of(None)

    def batch_size(self, image_embeds: Array) -> int:
        """The global batch."""
        return image_embeds.shape[0] * self.devices.num_devices

    def shard(self, inputs: Inputs) -> Inputs:
        """Makes the inputs vary over the same axes."""
        image, text, scale, bias, keys = inputs
        everywhere = self.devices.varying_axes
        others = tuple(axis for axis in everywhere if axis not in self.devices.axes)
        image, text = _varying(image, everywhere), _varying(text, everywhere)
        bias = None if bias is None else self._same(bias, others)
        keys = jax.tree.map(lambda x: _varying(x, everywhere), keys)
        return image, text, self._same(scale, others), bias, keys

    def run_dense(self, function: Callable[..., Any], inputs: Inputs) -> Any:
        """Runs a function of the whole batch, on every device; its results are scalars."""
        image, text, scale, bias, keys = self.shard(inputs)
        image, text, keys = self.devices.all_devices().all_gather((image, text, keys))
        results = function(image, text, scale, bias, keys)
        # Equal on all devices, which the types do not know.
        return jax.tree.map(lambda x: lax.pmean(x, self.devices.axes), results)

    def _same(self, x: Array, others: tuple[str, ...]) -> Array:
        """A scalar that is the same on the devices that share the batch."""
        if _varies_over(x) & set(self.devices.axes):
            x = lax.pmean(_varying(x, self.devices.axes), self.devices.axes)
        return _varying(x, others)


def make_placement(
    mesh: Mesh | AbstractMesh | None,
    batch_axes: str | Sequence[str] | None,
    axis_name: str | Sequence[str] | None,
) -> Callable[[Array, Array, Keys | None], GlobalArrays | LocalSlices]:
    """Checks where a loss is to run; what is left open is found when it is called.

    Args:
        mesh: as of `make_loss`, and so the rest.
        batch_axes: likewise.
        axis_name: likewise.

    Returns:
        Of the embeddings, and of the keys of their captions, where they are.

    Raises:
        ValueError: axes that the mesh does not have, or arguments that exclude each other.
    """
    if axis_name is not None:
        if mesh is not None or batch_axes is not None:
            raise ValueError(
                f"axis_name = {axis_name!r} is for slices inside a shard_map, mesh and batch_axes "
                "for global arrays: give one or the other"
            )
        axes = _axis_names(axis_name, "axis_name")
        return functools.partial(_local_slices, axes)
    if batch_axes is not None:
        batch_axes = _axis_names(batch_axes, "batch_axes")
    if mesh is not None:
        if not isinstance(mesh, Mesh | AbstractMesh):
            raise ValueError(f"mesh is a {type(mesh).__name__}, expected a jax.sharding.Mesh")
        devices = _batch_devices(mesh, batch_axes)

    def global_arrays(image: Array, text: Array, keys: Keys | None) -> GlobalArrays:
        del text, keys
        context = jax.sharding.get_abstract_mesh()
        _check_outside_shard_map(context, batch_axes or DEFAULT_BATCH_AXES)
        if mesh is not None:
            return GlobalArrays(mesh, devices)
        found = jax.typeof(image).sharding.mesh if context.empty else context
        if found.empty:
            if batch_axes is not None:
                raise ValueError(
                    f"batch_axes = {batch_axes!r}, and there is no mesh: give mesh=, call the loss "
                    "under jax.set_mesh(mesh), or leave batch_axes out on one device"
                )
            return GlobalArrays(None, BatchDevices((), 1, ()))
        return GlobalArrays(found, _batch_devices(found, batch_axes))

    return global_arrays


def _check_outside_shard_map(context: AbstractMesh, batch_axes: tuple[str, ...]) -> None:
    manual = context.manual_axes
    if set(manual) & set(batch_axes) or (manual and len(manual) == len(context.axis_names)):
        raise ValueError(
            f"the loss is called inside a shard_map over {', '.join(manual)}, where it sees one "
            f"device's slice: make it with make_loss(..., axis_name={manual[0]!r}), or call it "
            "outside"
        )


def _batch_devices(mesh: Mesh | AbstractMesh, batch_axes: tuple[str, ...] | None) -> BatchDevices:
    names = ", ".join(mesh.axis_names)
    if batch_axes is None:
        batch_axes = tuple(axis for axis in DEFAULT_BATCH_AXES if axis in mesh.axis_names)
        if not batch_axes:
            raise ValueError(
                f"the mesh has the axes {names}, and none of those that shard the batch by "
                f"default, {' and '.join(DEFAULT_BATCH_AXES)}: name the ones that do, "
                f"batch_axes=({mesh.axis_names[0]!r},)"
            )
    for axis in batch_axes:
        if axis not in mesh.axis_names:
            raise ValueError(
                f"batch_axes = {batch_axes!r}: the mesh has no axis {axis!r}; its axes are {names}"
            )
    axes = tuple(axis for axis in batch_axes if mesh.shape[axis] > 1)
    return BatchDevices(axes, math.prod(mesh.shape[axis] for axis in axes), axes)


def _local_slices(
    axes: tuple[str, ...], image: Array, text: Array, keys: Keys | None
) -> LocalSlices:
    try:
        num_devices = math.prod(lax.axis_size(axis) for axis in axes)
    except NameError as error:
        found = jax.sharding.get_abstract_mesh().manual_axes
        raise ValueError(
            f"axis_name = {axes!r}: the axes of the shard_map around the loss are "
            f"{', '.join(found) or 'none, it is called outside of one'}; name those that shard "
            "the batch, or use mesh= and batch_axes="
        ) from error
    given = {"image_embeds": image, "text_embeds": text}
    if keys is not None:
        given["captions"] = keys[0]
    varying = frozenset[str]().union(*map(_varies_over, given.values()))
    for name, x in given.items():
        missing = [axis for axis in axes if axis not in _varies_over(x)]
        if missing:
            raise ValueError(
                f"{name} are the same on all devices of the axis {missing[0]!r}: give each its own "
                "slice of the batch, inside a jax.shard_map with check_vma=True (its default)"
            )
    return LocalSlices(BatchDevices(axes, num_devices, tuple(sorted(varying))))


def _axis_names(axes: str | Sequence[str], argument: str) -> tuple[str, ...]:
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    if not names or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f"{argument} = {axes!r}: expected the name of a mesh axis, or several different ones"
        )
    return names


def _explicit_axes(mesh: Mesh | AbstractMesh | None) -> tuple[str, ...]:
    if mesh is None:
        return ()
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in pairs if kind == AxisType.Explicit)


def _varies_over(x: Array) -> frozenset[str]:
    """The axes of the surrounding shard_map over which an array differs between devices."""
    return jax.typeof(x).manual_axis_type.varying


def _varying(x: Array, axes: Sequence[str]) -> Array:
    missing = tuple(axis for axis in axes if axis not in _varies_over(x))
    return lax.pcast(x, missing, to="varying") if missing else x


def as_scalar(x: Any, name: str) -> Array:
    """A scalar parameter as an array; a Python number becomes float32.

    Raises:
        ValueError: it is no scalar.
    """
    array = x if isinstance(x, jax.Array) else jnp.asarray(x, jnp.float32)
    if array.shape:
        raise ValueError(f"{name} has shape {array.shape}; it must be a scalar []")
    return array
