"""The mesh of devices."""

import types

import numpy as np
import pytest

from clipjax import partitioning


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


def test_devices_of_several_slices_are_refused():
    devices = [types.SimpleNamespace(slice_index=i // 4) for i in range(8)]
    with pytest.raises(ValueError, match="2 slices"):
        partitioning.make_mesh({"data": 8}, devices)


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
    mesh = partitioning.make_mesh(sizes, devices)
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}
    group = np.array([device.coords for device in mesh.devices[0, :, 0]])
    assert (group != group[0]).any(axis=0).sum() == neighbours
