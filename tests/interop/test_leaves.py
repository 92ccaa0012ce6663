"""The transforms mean what their names say, and go back exactly."""

import numpy as np
import pytest

from clipjax.interop import leaves as table
from clipjax.interop import weights
from clipjax.interop.leaves import Rows
from clipjax.interop.tensors import of_array

random = np.random.default_rng(0)
WIDTH, HEADS, SIZE = 6, 2, 4


def numbers(*shape):
    return random.standard_normal(shape).astype(np.float32)


X = numbers(5, WIDTH)
MIXED = numbers(5, HEADS, SIZE)
FUSED = numbers(3 * HEADS * SIZE, WIDTH)


@pytest.mark.parametrize(
    ("transform", "theirs", "meaning"),
    [
        (table.IDENTITY, numbers(3, 2), lambda w, ours: (w, ours)),
        (table.SCALAR, numbers(1), lambda w, ours: (w[0], ours)),
        (table.LINEAR, numbers(7, WIDTH), lambda w, ours: (X @ w.T, X @ ours)),
        (table.CONV, numbers(5, 3, 2, 4), lambda w, ours: (w[4, 2, 1, 3], ours[1, 3, 2, 4])),
        (table.drop_axes(0, 1), numbers(1, 1, 4), lambda w, ours: (w[0, 0], ours)),
        (table.reshape((2, 6), (3, 4)), numbers(2, 6), lambda w, ours: (w.ravel(), ours.ravel())),
        (
            table.split_kernel(HEADS),
            numbers(HEADS * SIZE, WIDTH),
            lambda w, ours: ((X @ w.T).reshape(5, HEADS, SIZE), np.einsum("bw,whd->bhd", X, ours)),
        ),
        (
            table.split_bias(HEADS),
            numbers(HEADS * SIZE),
            lambda w, ours: (w.reshape(HEADS, SIZE), ours),
        ),
        (
            table.merge_kernel(HEADS),
            numbers(WIDTH, HEADS * SIZE),
            lambda w, ours: (MIXED.reshape(5, -1) @ w.T, np.einsum("bhd,hdw->bw", MIXED, ours)),
        ),
        (
            table.fused_kernel(HEADS),
            FUSED,
            lambda w, ours: (
                np.stack([(X @ part.T).reshape(5, HEADS, SIZE) for part in np.split(w, 3)], 1),
                np.einsum("bw,wchd->bchd", X, ours),
            ),
        ),
        (
            table.fused_bias(HEADS, 2),
            numbers(2 * HEADS * SIZE),
            lambda w, ours: (np.stack(np.split(w, 2)).reshape(2, HEADS, SIZE), ours),
        ),
        (
            table.drop_axes(0).then(table.LINEAR),
            numbers(1, 7, WIDTH),
            lambda w, ours: (w[0].T, ours),
        ),
    ],
)
def test_a_transform(transform, theirs, meaning):
    entry = table.leaf("a", "b", transform)
    ours = entry.to_ours([theirs])
    expected, found = meaning(theirs, ours)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    (back,) = entry.to_theirs(ours)
    assert back.shape == theirs.shape and back.tobytes() == theirs.tobytes()
    assert table.their_shapes(entry, ours.shape) == (theirs.shape,)


def test_shapes_of_any_size_take_no_memory():
    huge = (10**6, 3, 10**3, 10**6)
    for entry in (
        table.leaf("a", "b", table.fused_kernel(10**3)),
        table.qkv_kernel_leaf("a", ("q", "k", "v"), 10**3),
    ):
        shapes = table.their_shapes(entry, huge)
        assert sum(np.prod(shape, dtype=float) for shape in shapes) == 3e15


def test_parts_are_joined_in_order():
    parts = np.split(FUSED, 3)
    entry = table.qkv_kernel_leaf("a", ("q", "k", "v"), HEADS)
    fused = table.leaf("a", "b", table.fused_kernel(HEADS)).to_ours([FUSED])
    assert (entry.to_ours(parts) == fused).all()
    assert all((x == y).all() for x, y in zip(entry.to_theirs(fused), parts, strict=True))
    assert not (entry.to_ours(parts[::-1]) == fused).all()
    bias = numbers(2 * HEADS * SIZE)
    entry = table.qkv_bias_leaf("a", ("k", "v"), HEADS)
    fused = table.leaf("a", "b", table.fused_bias(HEADS, 2)).to_ours([bias])
    assert (entry.to_ours(np.split(bias, 2)) == fused).all()


def test_several_leaves_share_a_tensor(monkeypatch):
    """A fused q, k, v of which q is a leaf of its own, and k and v are another."""
    rows = (
        table.leaf("kv", Rows("in_proj", 1, 3, 3), table.fused_kernel(HEADS, 2)),
        table.leaf("q", Rows("in_proj", 0, 1, 3), table.split_kernel(HEADS)),
    )
    shapes = {"q": (WIDTH, HEADS, SIZE), "kv": (WIDTH, 2, HEADS, SIZE)}
    monkeypatch.setattr(weights, "expected_shapes", lambda spec: shapes)
    ours = weights.convert(rows, {"in_proj": of_array(FUSED)}, {"name": "x"})
    whole = table.leaf("a", "b", table.fused_kernel(HEADS)).to_ours([FUSED])
    assert (ours["q"].read() == whole[:, 0]).all()
    assert (ours["kv"].read() == whole[:, 1:]).all()
    theirs = weights.export(rows, ours)
    assert theirs["in_proj"].shape == FUSED.shape
    assert theirs["in_proj"].read().tobytes() == FUSED.tobytes()
    with pytest.raises(ValueError, match=r"in_proj has shape \(23, 6\), the model takes \(24, 6\)"):
        weights.convert(rows, {"in_proj": of_array(FUSED[:-1])}, {"name": "x"})
