"""Topologies: what is refused, and how it is said; what is known of each chip."""

import importlib.util
import sys
import types

import pytest

from clipjax.plan import gpu
from clipjax.plan.chips import CHIPS, GIB, GPU_MEMORY_SHARE, GPUS, TPUS, parse_topology
from clipjax.plan.topology import make_topology


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_examples_are_topologies(chip):
    name, parsed, shape, slices = parse_topology(chip.example)
    assert (name, parsed, slices) == (chip.example, chip, 1)
    assert len(shape) == (2 if chip.is_gpu else chip.interconnect.axes)


@pytest.mark.parametrize(
    ("name", "shape"), [("h100:8", (1, 8)), ("H100:32x8", (32, 8)), ("l4:1", (1, 1))]
)
def test_gpus_are_counted_by_hosts(name, shape):
    assert parse_topology(name)[2] == shape


def test_figures_of_a_gpu_agree_with_what_cuda_says_of_it():
    assert {chip.name for chip in GPUS} == set(gpu.PROPERTIES)
    for chip in GPUS:
        properties = gpu.PROPERTIES[chip.name]
        assert chip.hbm_bytes == GPU_MEMORY_SHARE * properties.memory
        assert chip.hbm_bandwidth == pytest.approx(properties.bandwidth, rel=1e-3)
        # The peak is of tensor cores at boost: products a clock of one multiprocessor, by their
        # generation (1,024 of the A100, 2,048 of the H100, 512 of the L4), two FLOPs each.
        clock = chip.flops / properties.cores / 2 / {80: 1024, 90: 2048, 89: 512}[
            10 * properties.capability[0] + properties.capability[1]
        ]  # fmt: skip
        assert 0.9 * properties.clock_ghz < clock / 1e9 <= 1.01 * properties.clock_ghz
        assert f'device_description_str: "{properties.name}"' in gpu.target_config(properties)


def test_slices_are_counted_behind_the_shape_of_one():
    assert parse_topology("V5e:4x4x2slices") == ("v5e:4x4x2slices", CHIPS["v5e"], (4, 4), 2)
    assert parse_topology("v5p:4x4x8x3slices")[2:] == ((4, 4, 8), 3)
    assert parse_topology("v5e:16x16x1slice") == parse_topology("v5e:16x16")


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
        ("h100", "write chip:shape.*GPUs: h100:32x8"),
        ("h100:16", "write h100:GPUS for one host or h100:HOSTSxGPUS, at most 8 GPUs a host"),
        ("h100:2x2x2", "h100:HOSTSxGPUS"),
        ("a100:0x8", "a100:HOSTSxGPUS"),
        ("v5e:4x2slices", "2 dimensions"),
        ("v5e:32x16x2slices", "512 chips; one pod of v5e has at most 256"),
        ("v5e:4x4x0slices", "one slice is written v5e:4x4"),
        ("v4:4x4x4x2slices", "between slices is published: v5e, v5p, v6e, tpu7x"),
        ("h100:2x8x2slices", "planned for TPUs whose"),
        ("h100:200x8", "1600 chips; plans are made for at most 1024"),
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


def test_without_the_gpu_compiler_the_error_says_how_to_get_it(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name.startswith("jax_plugins") else find_spec(name),
    )
    with pytest.raises(ValueError, match=r"pip install 'clipjax\[cuda\]' \(it needs no GPU\)"):
        make_topology("h100:8")


def test_jax_is_answered_for_an_absent_gpu_and_only_while_it_traces(monkeypatch):
    asked = types.ModuleType("asked")
    asked.check_compute_capability = asked.is_cuda_compute_capability_equal = None
    asked.check_cudnn_version = None
    monkeypatch.setitem(sys.modules, "asked", asked)
    monkeypatch.setattr(gpu, "ASKS", "asked")
    with gpu.answering_for(CHIPS["a100"]):
        assert asked.check_compute_capability("8.0")
        assert not asked.check_compute_capability("9.0")
        assert asked.is_cuda_compute_capability_equal("8.0")
        assert asked.check_cudnn_version() >= 90_000
    assert asked.check_compute_capability is None


def test_a_jax_that_asks_elsewhere_is_named_if_the_trace_fails(monkeypatch):
    with gpu.answering_for(CHIPS["h100"]):  # this JAX asks where it is expected to
        pass
    monkeypatch.setattr(gpu, "ASKS", "types")
    with pytest.raises(ValueError, match=r"jax .* has no check_compute.*config.attention=xla"):  # noqa: SIM117
        with gpu.answering_for(CHIPS["h100"]):
            raise RuntimeError("no GPU")
    with gpu.answering_for(CHIPS["h100"]):  # a step without cuDNN does not ask
        pass


@pytest.mark.tpu
def test_libtpu_knows_the_chips():
    for name, devices, hosts in (
        ("v5e:4x4", 16, 4),
        ("v5e:4x4x2slices", 32, 8),
        ("v5p:4x4x4", 64, 16),
        ("v4:2x2x1", 4, 1),
        ("tpu7x:2x2x1", 8, 1),
    ):
        topology = make_topology(name)
        assert (len(topology.devices), topology.num_hosts) == (devices, hosts)
        assert len(topology.devices) == topology.num_chips * topology.chip.devices


@pytest.mark.tpu
@pytest.mark.parametrize("chip", TPUS, ids=lambda chip: chip.name)
def test_a_mesh_can_be_made_and_the_memory_is_what_the_compiler_says(chip):
    import jax
    import jax.numpy as jnp

    from clipjax.partitioning import make_mesh, replicated

    shape = "2x2" if chip.interconnect.axes == 2 else "2x2x1"
    mesh = make_mesh({"data": -1}, make_topology(f"{chip.name}:{shape}").devices)
    large = jax.ShapeDtypeStruct((2**18, 2**18), jnp.float32, sharding=replicated(mesh))
    with pytest.raises(jax.errors.JaxRuntimeError) as refusal:
        jax.jit(lambda x: (x @ x, x.T @ x)).lower(large).compile()
    assert f"available HBM ({chip.hbm_bytes / chip.devices / GIB:.2f}G)" in str(refusal.value)


@pytest.mark.tpu
def test_libtpu_refuses_a_shape():
    with pytest.raises(ValueError, match="libtpu refuses"):
        make_topology("v5e:15x3")


@pytest.mark.gpu
@pytest.mark.parametrize("chip", GPUS, ids=lambda chip: chip.name)
def test_the_gpu_compiler_knows_the_chips(chip):
    import jax
    import jax.numpy as jnp

    from clipjax.partitioning import make_mesh, replicated
    from clipjax.plan.flops import count_flops
    from clipjax.plan.hlo import parse, walk

    topology = make_topology(f"{chip.name}:2x4")
    assert (len(topology.devices), topology.num_hosts) == (8, 2)
    assert {device.device_kind for device in topology.devices} == {gpu.PROPERTIES[chip.name].name}
    mesh = make_mesh({"data": -1}, topology.devices)
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=replicated(mesh))
    program = jax.jit(lambda x: x @ x).lower(x).compile(gpu.COMPILER_OPTIONS)
    assert count_flops(walk(parse(program.as_text()))).total == 2 * 256**3
