import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.layers.position_embeddings import resize_grid, resize_sequence, sincos_2d


def ramp(side, width=2):
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    return jnp.asarray(np.stack([rows, columns], -1).reshape(-1, width), jnp.float32)


def test_same_grid_changes_nothing_and_the_class_row_stays():
    embedding = jnp.concatenate([jnp.full((1, 2), 9.0), ramp(4)])
    np.testing.assert_allclose(resize_grid(embedding, (4, 4), num_extra=1), embedding, atol=1e-6)
    assert (resize_grid(embedding, (7, 7), num_extra=1)[0] == 9).all()


def test_rows_stay_rows():
    found = resize_grid(ramp(4), (8, 8), num_extra=0).reshape(8, 8, 2)
    # A ramp stays a ramp away from the border, at half-pixel centres.
    np.testing.assert_allclose(found[3:5, 4, 0], [1.25, 1.75], atol=0.1)
    np.testing.assert_allclose(found[4, 3:5, 1], [1.25, 1.75], atol=0.1)


def test_what_is_no_square():
    with pytest.raises(ValueError, match="5 patch positions are not a square grid"):
        resize_grid(jnp.zeros((5, 2)), (4, 4), num_extra=0)


def test_sequence():
    embedding = jnp.arange(4.0)[:, None]
    np.testing.assert_allclose(resize_sequence(embedding, 4), embedding, atol=1e-6)
    assert resize_sequence(embedding, 8).shape == (8, 1)


def test_sines_and_cosines():
    """The formula of big_vision and CLIPA, element by element."""
    side, width = 3, 16
    found = sincos_2d(side, width)
    frequencies = [10_000 ** -(i / 3) for i in range(4)]
    for row in range(side):
        for column in range(side):
            wanted = [
                f(x * w) for x in (column, row) for f in (np.sin, np.cos) for w in frequencies
            ]
            np.testing.assert_allclose(found[row * side + column], wanted, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4, not 18"):
        sincos_2d(3, 18)
