"""Sharding rules: which mesh axes a dimension falls on."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from clipjax import partitioning
from clipjax.models import build_model, resolve_spec
from clipjax.train_state import init_variables


@pytest.mark.parametrize(
    ("axes", "shape", "rules", "expected"),
    [
        (("embed", "mlp"), (8, 32), [("mlp", "tensor")], P(None, "tensor")),
        (("embed", "mlp"), (8, 33), [("mlp", "tensor")], P()),  # does not divide
        (("embed", "mlp"), (8, 32), [("mlp", "fsdp"), ("embed", "fsdp")], P(None, "fsdp")),
        (("embed", "mlp"), (8, 32), [("mlp", "tensor"), ("embed", "fsdp")], P("fsdp", "tensor")),
        (("embed", "mlp"), (8, 32), [("mlp", None)], P()),
        (("embed", "mlp"), (8, 32), [("mlp", None), ("mlp", "fsdp")], P()),  # None decides
        (("embed", "mlp"), (8, 32), [("mlp", "data"), ("mlp", "fsdp")], P(None, "data")),
        (("batch",), (8,), [("batch", ("data", "fsdp"))], P(("data", "fsdp"))),
        (("embed",), (2,), [("embed", ("data", "fsdp")), ("embed", "data")], P("data")),
    ],
)
def test_rules_apply_from_the_top_where_they_divide(axes, shape, rules, expected):
    mesh = AbstractMesh((2, 2, 2), partitioning.MESH_AXES)
    assert partitioning.spec_of(axes, shape, rules, mesh) == expected


def test_own_rules_stand_in_front():
    rules = partitioning.rules_of("fsdp", [["mlp", "tensor"], ["embed", ["data", "fsdp"]]])
    for table in (rules.params, rules.optimizer):
        assert table[:2] == (("mlp", "tensor"), ("embed", ("data", "fsdp")))
    mesh = AbstractMesh((2, 4, 2), partitioning.MESH_AXES)
    spec = partitioning.spec_of(("embed", "mlp"), (64, 256), rules.params, mesh)
    assert spec == P(("data", "fsdp"), "tensor")


@pytest.mark.parametrize(
    "rule",
    [["mlp"], "mlp", ["width", "fsdp"], ["mlp", "model"], ["mlp", ["data", "x"]], ["mlp", 4]],
)
def test_a_rule_that_is_none_is_an_error(rule):
    with pytest.raises(ValueError, match=r"^logical_axes\[1\] = .* is a pair"):
        partitioning.rules_of("zero1", [["embed", "data"], rule])


def test_an_unknown_table_is_an_error():
    with pytest.raises(ValueError, match=r"^sharding = 'zero9'.*replicated, zero1, fsdp"):
        partitioning.rules_of("zero9")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("ViT-B-32", {}),
        ("RN50", {"layers": [1, 1, 1, 1]}),
        ("siglip-b-16-224", {}),
        ("align-base", {"depth_factor": 0.1}),
    ],
)
def test_models_name_only_axes_that_a_rule_may_name(name, image):
    spec = resolve_spec({"name": name, "image": image, "text": {"depth": 1}})
    size, length = spec["image_size"], spec["text"]["context_length"]
    batch = {
        "image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((1, length), jnp.int32),
    }
    model = build_model(spec)
    boxed = jax.eval_shape(lambda key: init_variables(model.init, key, batch), jax.random.key(0))
    specs = jax.tree.leaves(nn.get_partition_spec(boxed["params"]))
    named = {axis for axes in specs for axis in axes}
    assert {"embed", "mlp"} <= named <= {*partitioning.LOGICAL_AXES, None}
