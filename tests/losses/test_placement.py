"""Wherever the embeddings are, the loss and its gradients are those of the float64 dense loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipjax.losses import clip_loss, make_loss
from clipjax.losses.placement import LocalSlices

LAYOUTS = ("dense", "gather", "grid", "ring")
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
# name -> (axis types, sizes by axis, the axes of the batch)
MESHES = {
    "auto": ((AUTO,), {"dp": 8}, ("dp",)),
    "explicit": ((EXPLICIT,), {"dp": 8}, ("dp",)),
    "explicit, two axes": ((EXPLICIT, EXPLICIT), {"a": 2, "b": 4}, ("b", "a")),
    "explicit batch, auto rest": ((EXPLICIT, AUTO), {"dp": 4, "tp": 2}, ("dp",)),
    "auto batch, explicit rest": ((AUTO, EXPLICIT), {"dp": 4, "tp": 2}, ("dp",)),
    "mixed batch": ((EXPLICIT, AUTO), {"a": 2, "b": 4}, ("a", "b")),
}
QUICK = [("auto", "grid"), ("explicit", "ring"), ("mixed batch", "grid")]
QUICK_SLICES = [("auto", "ring"), ("explicit batch, auto rest", "dense")]


def marked(quick):
    """All meshes and layouts, those that are not quick as slow tests."""
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.slow)
        for case in itertools.product(MESHES, LAYOUTS)
    ]


def make_mesh(name):
    types, sizes, axes = MESHES[name]
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    shape = tuple(sizes.values())
    return jax.make_mesh(shape, tuple(sizes), axis_types=types, devices=devices), axes


def sharded(problem, mesh, axes):
    image, text, *scalars = problem
    rows = NamedSharding(mesh, PartitionSpec(axes))
    return (*jax.device_put((image, text), rows), *scalars)


def value_and_grad(loss_fn):
    return jax.value_and_grad(loss_fn, (0, 1, 2, 3), has_aux=True)


def check(oracle, name, problem, found):
    (loss, metrics), gradients = found
    oracle.assert_equal((loss, metrics, gradients), oracle.reference(name, *problem))


@pytest.mark.parametrize(("mesh_name", "layout"), marked(QUICK))
def test_global_arrays(oracle, mesh_name, layout):
    """Sharded arrays under jit; the mesh is given, or that of the context."""
    (mesh, axes), problem = make_mesh(mesh_name), oracle.problem(16, 4)
    name = "clip" if layout == "dense" else "siglip"
    loss_fn = make_loss(name, mesh=mesh, batch_axes=axes, layout=layout)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(value_and_grad(loss_fn))(*sharded(problem, mesh, axes))
        check(oracle, name, problem, found)
        assert found[1][0].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(axes)), 2)


@pytest.mark.parametrize(("mesh_name", "layout"), marked(QUICK_SLICES))
def test_slices_in_a_shard_map(oracle, mesh_name, layout):
    """The gradient of each slice, and the whole one of what all devices share."""
    (mesh, axes), problem = make_mesh(mesh_name), oracle.problem(16, 4)
    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    specs = (rows, rows, everywhere, everywhere)
    step = jax.shard_map(
        value_and_grad(make_loss("siglip", axis_name=axes, layout=layout)),
        mesh=mesh,
        in_specs=specs,
        out_specs=((everywhere, everywhere), specs),
    )
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        check(oracle, "siglip", problem, jax.jit(step)(*sharded(problem, mesh, axes)))


@pytest.mark.parametrize("layout", ["dense", pytest.param("grid", marks=pytest.mark.slow)])
def test_bare_arrays_and_the_mesh_of_the_context(oracle, layout):
    (mesh, axes), problem = make_mesh("explicit"), oracle.problem(16, 4)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        loss_fn = make_loss("clip", batch_axes="dp", layout=layout)
        check(oracle, "clip", problem, jax.jit(value_and_grad(loss_fn))(*problem))
        loss, _ = jax.jit(loss_fn)(*sharded(problem, mesh, axes))
    np.testing.assert_allclose(loss, oracle.reference("clip", *problem)[0], rtol=1e-6)


def test_numbers_for_scale_and_bias(oracle):
    image, text, scale, bias = oracle.problem(16, 4)
    loss_fn = jax.jit(make_loss("siglip", layout="dense"))
    assert loss_fn(image, text, float(scale), -3.0)[0] == loss_fn(image, text, scale, bias)[0]
    loss_fn = make_loss("siglip", layout="grid")
    found = jax.eval_shape(lambda *a: loss_fn(*a, float(scale), -3.0), image, text)
    assert found[0].dtype == jnp.float32


def test_a_scale_that_varies_over_the_devices(oracle):
    """Its gradient is then a part on each device, and the parts sum to the whole."""
    (mesh, axes), problem = make_mesh("auto"), oracle.problem(16, 4)
    loss_fn = make_loss("clip", axis_name="dp", layout="grid")

    def of_scale(image, text, scale):
        scale = jax.lax.pcast(scale, "dp", to="varying")
        part = jax.grad(loss_fn, 2, has_aux=True)(image, text, scale)[0]
        return jax.lax.psum(part, "dp")

    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    specs = (rows, rows, everywhere)
    step = jax.shard_map(of_scale, mesh=mesh, in_specs=specs, out_specs=everywhere)
    found = jax.jit(step)(*problem[:3])
    np.testing.assert_allclose(found, oracle.reference("clip", *problem)[2][2], rtol=1e-5)


def test_a_slice_that_stays_alone_is_seen(oracle, monkeypatch):
    """Negative control: without the gathering, every device has the loss of its own slice."""
    monkeypatch.setattr(LocalSlices, "run_dense", lambda self, function, inputs: function(*inputs))
    (mesh, axes), problem = make_mesh("auto"), oracle.problem(16, 4)
    rows = PartitionSpec(axes)
    loss_fn = make_loss("clip", axis_name="dp", layout="dense")
    step = jax.shard_map(
        lambda *a: loss_fn(*a)[0][None],
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=rows,
    )
    loss = float(jax.jit(step)(*problem[:3]).mean())
    assert abs(loss - oracle.reference("clip", *problem)[0]) > 0.1


def call(where, problem, *, axes=("dp",), check_vma=True, **how):
    loss_fn = make_loss("clip", **how)
    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    step = jax.shard_map(
        lambda *a: loss_fn(*a)[0],
        mesh=where,
        in_specs=(rows, rows, everywhere),
        out_specs=everywhere,
        check_vma=check_vma,
    )
    jax.eval_shape(step, *problem[:3])


def test_axes_that_the_mesh_does_not_have(oracle):
    (mesh, _), problem = make_mesh("auto"), oracle.problem(16, 4)
    with pytest.raises(ValueError, match=r"axes dp, and none.*data and fsdp.*batch_axes=\('dp',\)"):
        make_loss("clip", mesh=mesh)
    with pytest.raises(ValueError, match=r"batch_axes = \('data',\): .*no axis 'data'.*are dp"):
        make_loss("clip", mesh=mesh, batch_axes="data")
    with pytest.raises(ValueError, match="several different ones"):
        make_loss("clip", mesh=mesh, batch_axes=("dp", "dp"))
    with pytest.raises(ValueError, match=r"batch_axes = \('dp',\), and there is no mesh"):
        make_loss("clip", batch_axes="dp")(*problem)
    with pytest.raises(ValueError, match="give one or the other"):
        make_loss("clip", mesh=mesh, axis_name="dp")
    with pytest.raises(ValueError, match=r"axis_name = \('dp',\).*none, it is called outside"):
        make_loss("clip", axis_name="dp")(*problem)
    with pytest.raises(ValueError, match=r"axis_name = \('data',\).*around the loss are dp"):
        call(mesh, problem, axis_name="data")
    for how in ({}, {"mesh": mesh, "batch_axes": "dp"}):
        with pytest.raises(ValueError, match=r"inside a shard_map over dp.*axis_name='dp'"):
            call(mesh, problem, **how)
    for untracked in ({"axes": ()}, {"check_vma": False}):
        with pytest.raises(ValueError, match=r"image_embeds are the same on all.*check_vma=True"):
            call(mesh, problem, axis_name="dp", **untracked)


def test_a_dense_loss_of_ones_own_in_a_shard_map(oracle):
    """What is written for one device sees the whole batch."""
    (mesh, axes), problem = make_mesh("auto"), oracle.problem(16, 4)
    rows = PartitionSpec(axes)
    loss_fn = make_loss("clipjax.losses.clip:clip_loss", axis_name="dp", plugins=("clipjax",))
    step = jax.shard_map(
        loss_fn, mesh=mesh, in_specs=(rows, rows, PartitionSpec()), out_specs=PartitionSpec()
    )
    loss, metrics = jax.jit(step)(*problem[:3])
    np.testing.assert_allclose(loss, clip_loss(*problem[:3]), rtol=1e-6)
    assert metrics["logit_scale"] == jnp.exp(problem[2])
