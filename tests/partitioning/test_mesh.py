"""The mesh of devices."""

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
        ({"model": 8}, "config.mesh.model"),
    ):
        with pytest.raises(ValueError, match=words):
            partitioning.mesh_shape(sizes, 8)
