"""Topologies: what is refused, and how it is said."""

import importlib.util

import pytest

from clipjax.plan.chips import CHIPS, GIB, make_topology, parse_topology


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_examples_are_topologies(chip):
    name, parsed, shape = parse_topology(chip.example)
    assert (name, parsed) == (chip.example, chip)
    assert len(shape) == chip.torus_axes


@pytest.mark.parametrize("name", ["7x:4x4x4", "v7x:4x4x4", "TPU7x:4x4x4"])
def test_other_names_of_a_chip(name):
    assert parse_topology(name)[0] == "tpu7x:4x4x4"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:4x4", "unknown.*v5e:16x16.*v5p:8x8x8"),
        ("v5e", "write chip:shape"),
        ("v5e:", "write chip:shape"),
        ("v5e:4x4x4", "2 dimensions"),
        ("v5p:8x8", "3 dimensions"),
        ("v5e:0x4", "2 dimensions"),
        ("v5e:32x16", "512 chips.*at most 256"),
    ],
)
def test_a_wrong_topology_is_named_with_what_is_allowed(name, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(name)


def test_without_libtpu_the_error_says_how_to_get_it(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name)
    )
    with pytest.raises(ValueError, match=r"pip install 'clipjax\[tpu\]'"):
        make_topology("v5e:4x4")


@pytest.mark.tpu
def test_libtpu_knows_the_chips():
    for name, devices, hosts in (
        ("v5e:4x4", 16, 4),
        ("v5p:4x4x4", 64, 16),
        ("v4:2x2x1", 4, 1),
        ("tpu7x:2x2x1", 8, 1),
    ):
        topology = make_topology(name)
        assert (len(topology.devices), topology.num_hosts) == (devices, hosts)
        assert len(topology.devices) == topology.num_chips * topology.chip.devices


@pytest.mark.tpu
@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_a_mesh_can_be_made_and_the_memory_is_what_the_compiler_says(chip):
    import jax
    import jax.numpy as jnp

    from clipjax.partitioning import make_mesh, replicated

    shape = "2x2" if chip.torus_axes == 2 else "2x2x1"
    mesh = make_mesh({"data": -1}, make_topology(f"{chip.name}:{shape}").devices)
    large = jax.ShapeDtypeStruct((2**18, 2**18), jnp.float32, sharding=replicated(mesh))
    with pytest.raises(jax.errors.JaxRuntimeError) as refusal:
        jax.jit(lambda x: (x @ x, x.T @ x)).lower(large).compile()
    assert f"available HBM ({chip.hbm_bytes / chip.devices / GIB:.2f}G)" in str(refusal.value)


@pytest.mark.tpu
def test_libtpu_refuses_a_shape():
    with pytest.raises(ValueError, match="libtpu refuses"):
        make_topology("v5e:15x3")
