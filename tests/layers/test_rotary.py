"""Rotary positions: what of the places is seen in a product of a query and a key."""

import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.layers.rotary import Rotary2D


def turned(rotary, head_dim=8):
    """Equal queries and equal keys of all tokens, turned, and the values: [length, 3, head_dim]."""
    length = rotary.num_extra + rotary.side**2
    one = np.random.default_rng(0).standard_normal((3, head_dim)).astype(np.float32)
    qkv = np.broadcast_to(one[None, None, :, None], (1, length, 3, 1, head_dim))
    return np.asarray(rotary(jnp.asarray(qkv)))[0, :, :, 0], one


def test_a_product_depends_on_the_displacement_alone():
    found, one = turned(Rotary2D(4))
    scores = (found[:, 0] @ found[:, 1].T).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(scores[:-1, :-1, :-1, :-1], scores[1:, 1:, 1:, 1:], atol=1e-5)
    np.testing.assert_allclose(np.diag(scores.reshape(16, 16)), one[0] @ one[1], atol=1e-5)
    # A step along a row is not one along a column.
    assert abs(scores[0, 0, 0, 1] - scores[0, 0, 1, 0]) > 1e-2


def test_values_and_the_class_token_stay():
    found, one = turned(Rotary2D(3, num_extra=1))
    np.testing.assert_array_equal(found[:, 2], np.broadcast_to(one[2], (10, 8)))
    np.testing.assert_array_equal(found[0], one)
    # Behind a class token the first patch is at row 1 and column 1.
    first = Rotary2D(3, num_extra=1).angles(8)[1]
    np.testing.assert_array_equal(first, Rotary2D(3).angles(8)[4])


def test_the_first_half_turns_by_the_column_and_the_second_by_the_row():
    angles = Rotary2D(3).angles(8).reshape(3, 3, 4)
    np.testing.assert_allclose(angles[1, 2], [2, 0.02, 1, 0.01], rtol=1e-6)


def test_another_grid_is_stretched_to_the_one_it_refers_to():
    stretched = Rotary2D(4, reference_side=2).angles(4)
    np.testing.assert_allclose(stretched, Rotary2D(4).angles(4) / 2)


def test_heads_that_cannot_be_halved_twice():
    with pytest.raises(ValueError, match="heads of a multiple of 4, not 6"):
        Rotary2D(2).angles(6)
