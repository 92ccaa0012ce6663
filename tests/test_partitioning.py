"""Meshes and sharding rules."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipjax import partitioning
from clipjax.train_state import TrainState


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


@pytest.fixture(scope="module")
def mesh():
    return partitioning.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


@pytest.mark.parametrize(
    ("axes", "shape", "rules", "expected"),
    [
        (("embed", "mlp"), (8, 32), [("mlp", "tensor")], P(None, "tensor")),
        (("embed", "mlp"), (8, 33), [("mlp", "tensor")], P()),  # does not divide
        (("embed", "mlp"), (8, 32), [("mlp", "fsdp"), ("embed", "fsdp")], P(None, "fsdp")),
        (("embed", "mlp"), (8, 32), [("mlp", "tensor"), ("embed", "fsdp")], P("fsdp", "tensor")),
        (("embed", "mlp"), (8, 32), [("mlp", None)], P()),
        (("batch",), (8,), [("batch", ("data", "fsdp"))], P(("data", "fsdp"))),
        (("embed",), (2,), [("embed", ("data", "fsdp")), ("embed", "data")], P("data")),
    ],
)
def test_rules_apply_from_the_top_where_they_divide(mesh, axes, shape, rules, expected):
    assert partitioning.spec_of(axes, shape, rules, mesh) == expected


def state(params):
    zero = np.zeros((), np.int32)
    moments = {"count": zero, "mu": params, "nu": params}
    return TrainState(zero, params, (moments,), {}, params, zero, zero)


def test_state_shardings_follow_the_parameters(mesh):
    params = {"mlp": {"kernel": np.zeros((8, 32), np.float32)}}
    axes = {"mlp/kernel": ("embed", "mlp")}
    zero1 = partitioning.state_shardings(state(params), axes, mesh, partitioning.rules_of("zero1"))
    assert zero1.params["mlp"]["kernel"].spec == P()
    assert zero1.opt_state[0]["mu"]["mlp"]["kernel"].spec == P(None, ("data", "fsdp"))
    assert zero1.opt_state[0]["count"].spec == P()
    tensor = partitioning.state_shardings(
        state(params), axes, mesh, partitioning.rules_of("tensor")
    )
    assert tensor.params["mlp"]["kernel"].spec == P(None, "tensor")


def test_a_large_parameter_that_no_rule_fits_is_an_error(mesh):
    params = {"odd": {"kernel": jax.ShapeDtypeStruct((2049, 2049), np.float32)}}
    axes = {"odd/kernel": ("one", "two")}
    with pytest.raises(ValueError, match=r"odd/kernel.*config\.logical_axes"):
        partitioning.state_shardings(state(params), axes, mesh, partitioning.rules_of("fsdp"))
    rules = partitioning.rules_of("fsdp", [["one", "fsdp"]])
    with pytest.raises(ValueError, match="odd/kernel"):  # 2049 does not divide by 2
        partitioning.state_shardings(state(params), axes, mesh, rules)
    with pytest.raises(ValueError, match=r"config\.sharding"):
        partitioning.rules_of("zero9")
