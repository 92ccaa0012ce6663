import jax
import numpy as np
import pytest
from stand_ins import encode_image, make_params, picture, unit

from clipjax.encoding.batches import RowLayout, put_on_mesh, run_batches
from clipjax.encoding.compiled import embed_fn
from clipjax.partitioning import make_mesh

MESHES = [{"data": 1}, {"data": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}]


def mesh_of(sizes):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 7, 8, 23])
def test_every_item_is_in_exactly_one_batch(sizes, num_rows):
    layout = RowLayout(mesh_of(sizes), num_rows, 8)
    seen = np.concatenate([layout.indices(b) for b in range(layout.num_batches)])
    assert sorted(seen[seen < num_rows]) == list(range(num_rows))


def test_batches_are_no_larger_than_the_set_needs():
    mesh = mesh_of({"data": 8})
    assert RowLayout(mesh, 5, 256).batch_size == 8
    assert RowLayout(mesh, 394, 100).batch_size == 104
    assert RowLayout(mesh, 394, 100).num_batches == 4


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_rows_arrive_in_order_and_sharded(sizes):
    mesh = mesh_of(sizes)
    layout = RowLayout(mesh, 8, 8)
    params = put_on_mesh(make_params(), mesh)
    pixels = np.stack([picture(row) for row in range(8)])
    embeds = embed_fn(encode_image, mesh)(params, layout.to_device(pixels))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    assert embeds.sharding.shard_shape(embeds.shape) == (8 // shards, embeds.shape[1])
    np.testing.assert_allclose(embeds, unit(make_params()["image"][:8]), rtol=1e-5)


def test_sharded_parameters_stay_where_they_are():
    mesh = mesh_of({"data": 2})
    placed = put_on_mesh(make_params(), mesh)
    again = put_on_mesh(placed, mesh)
    assert all(a is b for a, b in zip(placed.values(), again.values(), strict=True))


def test_evals_that_share_a_function_share_its_compilation():
    mesh = mesh_of({"data": 2})
    assert embed_fn(encode_image, mesh) is embed_fn(encode_image, mesh)


def test_batches_run_in_order_and_errors_are_passed_on():
    layout = RowLayout(mesh_of({"data": 2}), 28, 4)

    def make(number, bad=None):
        return np.full((4, 1), number // (number != bad)), number

    found = list(run_batches(lambda factor, rows: factor * rows.sum(), 2, layout, make))
    assert [(int(total), number) for total, number in found] == [(8 * i, i) for i in range(7)]
    with pytest.raises(ZeroDivisionError):
        list(run_batches(lambda _, rows: rows, None, layout, lambda i: make(i, bad=3)))


def test_an_empty_set_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        RowLayout(mesh_of({"data": 1}), 0, 8)
