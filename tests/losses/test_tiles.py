"""Tiles of any size and shape leave the statistics of the whole block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.losses.clip import SoftmaxPairs
from clipjax.losses.tiles import Affine, Side, forward_tiles, tile_length


@pytest.mark.parametrize(
    ("length", "target", "expected"),
    [
        (8192, 1024, 1024),
        (768, 1024, 768),
        (1536, 1024, 768),
        (1920, 1024, 640),
        (999, 512, 500),
        (12, 5, 4),
        (7, 3, 3),
        (1, 1024, 1),
    ],
)
def test_tile_length(length, target, expected):
    assert tile_length(length, target) == expected


@pytest.mark.parametrize("length", [1, 5, 127, 1000, 4097, 65536])
@pytest.mark.parametrize("target", [1, 64, 1024])
def test_tiles_fit_the_target_and_pad_less_than_one_row_a_tile(length, target):
    tile = tile_length(length, target)
    count = -(-length // tile)
    assert 1 <= tile <= target
    assert count * tile - length < count


@pytest.mark.parametrize("tile", [(3, 4), (5, 13), (16, 2)])
def test_statistics_of_a_rectangle(tile):
    """11 rows, 13 columns, of which some are the same example and so are left out."""
    rng = np.random.default_rng(0)
    rows, columns = rng.normal(size=(11, 4)), rng.normal(size=(13, 4))
    row_ids, column_ids = np.arange(11) + 5, np.arange(13)
    logits = np.where(row_ids[:, None] == column_ids, -np.inf, 3.0 * rows @ columns.T)
    rule = SoftmaxPairs()
    run = jax.jit(forward_tiles, static_argnums=(0, 5))
    row_stats, column_stats = run(
        rule,
        Side(jnp.asarray(rows, jnp.float32), jnp.asarray(row_ids, jnp.int32)),
        Side(jnp.asarray(columns, jnp.float32), jnp.asarray(column_ids, jnp.int32)),
        (rule.init(11, axis=1), rule.init(13, axis=0)),
        Affine(jnp.float32(3.0), None),
        tile,
    )
    np.testing.assert_allclose(row_stats.max, logits.max(1), rtol=1e-5)
    np.testing.assert_allclose(column_stats.max, logits.max(0), rtol=1e-5)
    found = rule.residuals(row_stats, column_stats)
    np.testing.assert_allclose(found[0], jax.nn.logsumexp(logits, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found[1], jax.nn.logsumexp(logits, axis=0), rtol=1e-5)
