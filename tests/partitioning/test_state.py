"""The sharding of a train state, and what it says of state that stays whole."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from clipjax import partitioning
from clipjax.optim import make_optimizer
from clipjax.partitioning.state import LARGE_STATE
from clipjax.train_state import create_train_state
from clipjax.trees import flatten_with_names


def state(params, axes, tx=None):
    """Shapes of a train state, and the logical axes of its leaves."""
    tx = tx or optax.scale_by_adam()
    found = jax.eval_shape(lambda p: create_train_state({"params": p}, tx, with_ema=True), params)
    return found, partitioning.state_axes(found, {"params": axes}, tx)


def shardings(params, axes, table, mesh_shape=None, overrides=()):
    mesh = partitioning.make_mesh(mesh_shape or {"data": 4, "fsdp": 2})
    rules = partitioning.rules_of(table, overrides)
    return partitioning.state_shardings(*state(params, axes), mesh, rules)


def test_the_optimizer_says_what_it_keeps_of_which_parameter():
    """Two parameters of one shape, one of them frozen, and moments under names of their own."""
    params = {"a": {"kernel": np.zeros((8, 32))}, "b": {"kernel": np.zeros((8, 32))}}
    axes = {"a": {"kernel": P("embed", "mlp")}, "b": {"kernel": P("mlp", "embed")}}

    def kept_of(tx):
        found = dict(flatten_with_names(state(params, axes, tx)[1].opt_state))
        return {name: tuple(spec) for name, spec in found.items() if spec != P()}

    tx = make_optimizer(params, schedule=optax.constant_schedule(0.1), freeze=("^b/",), clip_norm=1)
    names = [f"inner_states/trained/inner_state/1/{moment}/a/kernel" for moment in ("mu", "nu")]
    assert kept_of(tx) == dict.fromkeys(names, ("embed", "mlp"))

    def init(params):  # of each parameter a record: its momentum, and factors of another shape
        return jax.tree.map(lambda p: {"momentum": p, "row": p[0]}, params)

    tx = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    assert kept_of(tx) == {
        "a/kernel/momentum": ("embed", "mlp"),
        "b/kernel/momentum": ("mlp", "embed"),
    }

    tx = tx._replace(init=lambda params: {"momentum": params["a"]})
    with pytest.raises(ValueError, match=r"its init has to make its state by jax\.tree\.map"):
        kept_of(tx)


def test_state_shardings_follow_the_parameters():
    params = {"mlp": {"kernel": np.zeros((8, 32), np.float32)}}
    axes = {"mlp": {"kernel": P("embed", "mlp")}}
    zero1 = shardings(params, axes, "zero1")
    assert zero1.params["mlp"]["kernel"].spec == P()
    assert zero1.opt_state.mu["mlp"]["kernel"].spec == P(None, ("data", "fsdp"))
    assert zero1.ema_params["mlp"]["kernel"].spec == P(None, ("data", "fsdp"))
    assert zero1.opt_state.count.spec == P()
    tensor = shardings(params, axes, "tensor", {"data": 2, "fsdp": 2, "tensor": 2})
    assert tensor.params["mlp"]["kernel"].spec == P(None, "tensor")
    assert tensor.opt_state.mu["mlp"]["kernel"].spec == P(("data", "fsdp"), "tensor")


def test_averages_lie_as_the_optimizer_does_and_lack_what_is_frozen():
    params = {"a": {"kernel": np.zeros((8, 32))}, "b": {"kernel": np.zeros((8, 32))}}
    axes = {"a": {"kernel": P("embed", "mlp")}, "b": {"kernel": P("mlp", "embed")}}
    tx = optax.sgd(0.1)
    averages = {"averages": ("x", "y"), "frozen": lambda name: name.startswith("b/")}
    shapes = jax.eval_shape(lambda p: create_train_state({"params": p}, tx, **averages), params)
    of_state = partitioning.state_axes(shapes, {"params": axes}, tx)
    mesh = partitioning.make_mesh({"data": 4, "fsdp": 2})
    rules = partitioning.rules_of("zero1")
    found = partitioning.state_shardings(shapes, of_state, mesh, rules)
    specs = {name: sharding.spec for name, sharding in flatten_with_names(found.averages)}
    assert specs == dict.fromkeys(("x/a/kernel", "y/a/kernel"), P(None, ("data", "fsdp")))


def test_a_large_parameter_that_no_rule_fits_is_an_error():
    params = {"odd": {"kernel": jax.ShapeDtypeStruct((2049, 2049), np.float32)}}
    with pytest.raises(ValueError, match=r"odd/kernel.* to logical_axes"):
        shardings(params, {"odd": {"kernel": P("length", "position")}}, "fsdp")
    with pytest.raises(ValueError, match="odd/kernel"):  # 2049 does not divide by 2
        shardings(params, {"odd": {"kernel": P("embed", "mlp")}}, "fsdp")


def test_a_tensor_axis_that_no_rule_uses_is_an_error():
    params = {"mlp": {"kernel": np.zeros((8, 32), np.float32)}}
    axes, mesh = {"mlp": {"kernel": P("embed", "mlp")}}, {"data": 2, "fsdp": 2, "tensor": 2}
    for table in ("replicated", "zero1", "fsdp"):
        with pytest.raises(ValueError, match=r"^mesh\.tensor = 2.*repeat each other's work"):
            shardings(params, axes, table, mesh)
    both = shardings(params, axes, "fsdp", mesh, [["mlp", "tensor"]])
    assert both.params["mlp"]["kernel"].spec == P("fsdp", "tensor")


# --- ZeRO-1 over devices that divide no width -----------------------------------------------------

WIDTH, MLP, DEPTH = 768, 3072, 12


def towers():
    """The MLPs of a ViT-B: 12 x 2 x 768 x 3072 parameters, 226 MB; twice and once more of state."""
    shape = jax.ShapeDtypeStruct((DEPTH, WIDTH, MLP), jnp.float32)
    params = {"fc": {"kernel": shape}, "proj": {"kernel": shape}}
    axes = jax.tree.map(lambda _: P("layers", "embed", "mlp"), params)
    return params, axes, 3 * 2 * 4 * DEPTH * WIDTH * MLP


def note(mesh, table="zero1"):
    params, axes, _ = towers()
    abstract_mesh = AbstractMesh(mesh, partitioning.MESH_AXES)
    rules = partitioning.rules_of(table)
    return partitioning.unsharded_state(*state(params, axes), abstract_mesh, rules)


def test_state_that_divides_is_no_matter():
    assert note((256, 1, 1)) is None
    assert note((256, 16, 1)) is None  # 4,096 devices: each takes a part of two dimensions
    assert note((4096, 1, 1), "replicated") is None  # no rule asks for it
    assert note((1, 4096, 1), "fsdp") is None  # the parameters' own error covers it


def test_state_that_stays_whole_is_named_with_its_bytes_and_the_mesh_that_mends_it():
    _, _, total = towers()
    found = note((4096, 1, 1))
    assert f"holds {total / 1e6:,.0f} MB" in found
    assert "its share of 0.2 MB" in found
    assert "a mesh of data=1024 x fsdp=4 leaves 0.2 MB" in found
    assert note((1024, 4, 1)) is None, "what it proposes holds what it says"
    # With the MLP's width taken by `tensor`, 768 is the other dimension to cut: 3 x 256.
    assert "data=256 x fsdp=16 leaves 1.3 MB" in note((4096, 1, 2), "tensor")


def test_devices_that_no_cut_mends():
    assert "take another number of them" in note((1009, 1, 1))  # a prime


def test_small_state_is_not_worth_a_word(monkeypatch):
    _, _, total = towers()
    assert total > LARGE_STATE
    monkeypatch.setattr("clipjax.partitioning.state.LARGE_STATE", total)
    assert note((4096, 1, 1)) is None


def test_the_run_is_warned(monkeypatch, caplog):
    """Eight devices divide 768 but not 770, and two do: the shardings come with the warning."""
    monkeypatch.setattr("absl.logging._absl_logger.propagate", True)
    odd = {"fc": {"kernel": jax.ShapeDtypeStruct((DEPTH, 770, 3074), jnp.float32)}}
    axes = {"fc": {"kernel": P("layers", "embed", "mlp")}}
    with caplog.at_level(logging.WARNING):
        found = shardings(odd, axes, "zero1", {"data": 8})
    assert found.opt_state.mu["fc"]["kernel"].spec == P()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "each device holds 341 MB" in record.message
    assert "data=4 x fsdp=2 leaves 170.4 MB" in record.message
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        shardings(towers()[0], towers()[1], "zero1", {"data": 8})
    assert not caplog.records
