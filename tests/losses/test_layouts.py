"""Devices fold to the squarest grid whose rows and columns cross exactly once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.losses import make_loss
from clipjax.losses.layouts import BatchDevices, grid_shape


@pytest.mark.parametrize(
    ("num_devices", "fold"),
    [(1, (1, 1)), (7, (1, 7)), (8, (2, 4)), (16, (4, 4)), (256, (16, 16)), (4096, (64, 64))],
)
def test_fold(num_devices, fold):
    devices = BatchDevices(("data",), num_devices, ("data",))
    assert grid_shape(num_devices) == fold
    rows, columns = devices.row_group().members, devices.column_group().members
    assert sorted(sum(rows, ())) == sorted(sum(columns, ())) == list(range(num_devices))
    assert all(len(set(row) & set(column)) == 1 for row in rows for column in columns)


@pytest.mark.parametrize("layout", ["gather", "grid", "ring"])
def test_no_buffer_is_as_large_as_the_logits(oracle, layout):
    """The compiled step holds one tile, never [batch / N, batch]; the dense loss does."""
    mesh = oracle.mesh(4)
    batch, embed = 1024, 8

    def temporary_bytes(layout, tile_size=None):
        loss_fn = make_loss("clip", mesh=mesh, layout=layout, tile_size=tile_size)
        spec = jax.NamedSharding(mesh, jax.P("data"))
        x = jax.ShapeDtypeStruct((batch, embed), jnp.float32, sharding=spec)
        scale = jax.ShapeDtypeStruct((), jnp.float32)
        step = jax.jit(jax.grad(loss_fn, (0, 1), has_aux=True))
        return step.lower(x, x, scale).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * batch * batch // 4
    assert temporary_bytes(layout, 64) < logits / 2
    if layout == "grid":
        assert temporary_bytes("dense") > logits


def test_a_million_examples_can_be_traced():
    """Counts of pairs pass 2^31 long before memory does."""
    x = jax.ShapeDtypeStruct((2**20, 8), jnp.bfloat16)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    for layout in ("dense", "grid"):
        step = jax.value_and_grad(make_loss("clip", layout=layout), (0, 1), has_aux=True)
        (loss, _), gradients = jax.eval_shape(step, x, x, scale)
        assert loss.dtype == np.float32
        assert gradients[0].shape == (2**20, 8)
