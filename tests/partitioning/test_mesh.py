"""The mesh of devices."""

import types

import jax
import numpy as np
import pytest

from clipjax import partitioning
from clipjax.partitioning import mesh


def test_mesh_resolves_one_free_axis_and_checks_the_product():
    assert partitioning.mesh_shape({"data": -1, "fsdp": 2}, 8) == {
        "data": 4,
        "fsdp": 2,
        "tensor": 1,
    }
    for sizes, words in (
        ({"data": 3}, "8 devices"),
        ({"data": -1, "fsdp": -1}, "8 devices"),
        ({"data": -1, "fsdp": 3}, "8 devices"),
        ({"model": 8}, "mesh.model"),
    ):
        with pytest.raises(ValueError, match=words):
            partitioning.mesh_shape(sizes, 8)


def sliced(*indices):
    """A stand-in for what tells slices apart: CPUs are of one."""
    return lambda devices: [
        [d for d, index in zip(devices, indices, strict=True) if index == which]
        for which in sorted(set(indices))
    ]


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 4, "fsdp": 2}, {"data": 2, "tensor": 4}])
def test_data_counts_slices_first(monkeypatch, sizes):
    monkeypatch.setattr(mesh, "slices_of", sliced(0, 1, 0, 1, 0, 1, 0, 1))
    ids = np.vectorize(lambda d: d.id)(partitioning.make_mesh(sizes, jax.devices()).devices)
    half = sizes["data"] // 2
    assert sorted(ids[:half].flat) == [0, 2, 4, 6] and sorted(ids[half:].flat) == [1, 3, 5, 7]
    assert ids.shape == tuple(sizes.get(axis, 1) for axis in partitioning.MESH_AXES)


@pytest.mark.parametrize(
    ("indices", "sizes"),
    [((0, 0, 0, 0, 1, 1, 1, 1), {"fsdp": 8}), ((0, 0, 0, 0, 0, 0, 1, 1), {"data": 8})],
)
def test_what_does_not_fit_a_slice_is_refused_on_tpus_alone(monkeypatch, indices, sizes):
    monkeypatch.setattr(mesh, "slices_of", sliced(*indices))
    placed = partitioning.make_mesh(sizes, jax.devices())  # hosts of GPUs are slices to JAX
    assert [d.id for d in placed.devices.flat] == [*range(8)]
    devices = [types.SimpleNamespace(platform="tpu", slice_index=i) for i in indices]
    with pytest.raises(ValueError, match=r"2 slices of \d and \d"):
        partitioning.make_mesh(sizes, devices)


def test_slices_are_told_apart_by_what_jax_says():
    devices = [types.SimpleNamespace(slice_index=i) for i in (1, 0, 1, 0)]
    assert mesh.slices_of(devices) == [[devices[1], devices[3]], [devices[0], devices[2]]]
    assert mesh.slices_of(jax.devices()) == [jax.devices()]


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("topology", "sizes", "neighbours"),
    [
        ("v5p:8x8x8", {"data": 64, "fsdp": 8}, 1),  # an axis of the torus
        ("v5p:8x8x8", {"data": 128, "fsdp": 4}, 1),  # half of one
        ("v5e:16x16", {"data": 64, "fsdp": 4}, 1),
        ("v5e:16x16", {"data": 2, "fsdp": 128}, 2),
    ],
)
def test_axes_that_are_no_whole_axes_of_the_torus(topology, sizes, neighbours):
    """Every device stands in the mesh once, and a group along fsdp spans the fewest torus axes."""
    pytest.importorskip("libtpu")
    from clipjax.plan import make_topology

    devices = make_topology(topology).devices
    placed = partitioning.make_mesh(sizes, devices)
    assert {device.id for device in placed.devices.flat} == {device.id for device in devices}
    group = np.array([device.coords for device in placed.devices[0, :, 0]])
    assert (group != group[0]).any(axis=0).sum() == neighbours
