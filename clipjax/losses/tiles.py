"""Loops over tiles of the logits: statistics forward, recomputed weights backward.

A block is a set of image rows against a set of text columns, with the index of each example in the
global batch. Peak memory is one tile and the accumulators, never the block's logits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from clipjax.array_types import Array
from clipjax.losses.equal_rows import Keys, equal_pairs
from clipjax.losses.pair_rule import PairRule, Stats, cosines, product


class Side(NamedTuple):
    """One side of a block: embeddings `[n, embed]` and their global example numbers `[n]`."""

    embeds: Array
    ids: Array
    keys: Keys | None = None  # those of equal captions are equal; None: no two match


class Affine(NamedTuple):
    """logit = scale * cosine + bias; the scale is already exponentiated."""

    scale: Array
    bias: Array | None


def tile_length(length: int, target: int) -> int:
    """The longest tile <= `target` that cuts `length` into equal parts with the least padding.

    A divisor that is a multiple of 128 (a matrix-unit edge) is taken if it costs at most twice as
    many tiles.
    """
    fewest = -(-length // target)
    for count in range(fewest, 2 * fewest + 1):
        if length % (count * 128) == 0:
            return length // count
    return -(-length // fewest)


def forward_tiles(
    rule: PairRule,
    rows: Side,
    columns: Side,
    stats: tuple[Stats, Stats],
    affine: Affine,
    tile: tuple[int, int],
) -> tuple[Stats, Stats]:
    """Update row and column statistics with every logit of the block, own pairs left out."""
    lengths = rows.ids.shape[0], columns.ids.shape[0]
    rows, row_stats = _cut(rows, tile[0], -1), _cut(stats[0], tile[0], 0)
    columns, column_stats = _cut(columns, tile[1], -2), _cut(stats[1], tile[1], 0)
    padded = any(length % size for length, size in zip(lengths, tile, strict=True))

    def column_step(j: Array, carry: Any) -> Any:
        row_stats, column_stats = carry
        column = _take(columns, j)

        def row_step(i: Array, carry: Any) -> Any:
            row_stats, of_column = carry
            logits, positive = _other_logits(_take(rows, i), column, affine, padded)
            of_row = rule.update(_take(row_stats, i), logits, positive, axis=1)
            return _put(row_stats, i, of_row), rule.update(of_column, logits, positive, axis=0)

        row_stats, of_column = lax.fori_loop(
            0, rows.ids.shape[0], row_step, (row_stats, _take(column_stats, j))
        )
        return row_stats, _put(column_stats, j, of_column)

    row_stats, column_stats = lax.fori_loop(
        0, columns.ids.shape[0], column_step, (row_stats, column_stats)
    )
    return _join(row_stats, lengths[0]), _join(column_stats, lengths[1])


class Norms(NamedTuple):
    """What the weights of a tile need of each row, or of each column."""

    of_rule: Any  # PairRule.normalisers
    share: Array | None  # one over the number of positives; None where the own pair is the only one


class Gradients(NamedTuple):
    """Accumulators, float32: `weights @ columns`, `weights.T @ rows` and the sum of the weights."""

    rows: Array
    columns: Any  # Array, or None where they are not asked for
    bias: Array | None


def backward_tiles(
    rule: PairRule,
    rows: Side,
    columns: Side,
    normalisers: tuple[Norms, Norms],
    gradients: Gradients,
    affine: Affine,
    tile: tuple[int, int],
) -> Gradients:
    """Recompute each tile and add its weights' products to the accumulators that are not None."""
    lengths = rows.ids.shape[0], columns.ids.shape[0]
    rows, row_norm = _cut(rows, tile[0], -1), _cut(normalisers[0], tile[0], 0)
    columns, column_norm = _cut(columns, tile[1], -2), _cut(normalisers[1], tile[1], 0)
    d_rows, d_columns = _cut((gradients.rows, gradients.columns), (tile[0], tile[1]), 0)
    padded = any(length % size for length, size in zip(lengths, tile, strict=True))
    dtype = rows.embeds.dtype

    def column_step(j: Array, carry: Any) -> Any:
        d_rows, d_columns, d_bias = carry
        column, of_column = _take(columns, j), _take(column_norm, j)

        def row_step(i: Array, carry: Any) -> Any:
            d_rows, d_column, d_bias = carry
            row = _take(rows, i)
            logits, positive = _other_logits(row, column, affine, padded)
            of_row = _take(row_norm, i)
            norms = of_row.of_rule, of_column.of_rule
            weights = rule.negative_weights(logits, *norms)
            if positive is not None:
                others = rule.other_positive_weights(logits, *norms, of_row.share)
                weights = jnp.where(positive, others, weights)
            if d_bias is not None:
                d_bias = d_bias + jnp.sum(weights)
            weights = weights.astype(dtype)
            d_row = _take(d_rows, i) + product(weights, column.embeds, (1, 0))
            if d_column is not None:
                d_column = d_column + product(weights, row.embeds, (0, 0))
            return _put(d_rows, i, d_row), d_column, d_bias

        d_rows, d_column, d_bias = lax.fori_loop(
            0, rows.ids.shape[0], row_step, (d_rows, _take(d_columns, j), d_bias)
        )
        return d_rows, _put(d_columns, j, d_column), d_bias

    d_rows, d_columns, d_bias = lax.fori_loop(
        0, columns.ids.shape[0], column_step, (d_rows, d_columns, gradients.bias)
    )
    return Gradients(_join(d_rows, lengths[0]), _join(d_columns, lengths[1]), d_bias)


def _other_logits(
    rows: Side, columns: Side, affine: Affine, padded: bool
) -> tuple[Array, Array | None]:
    """One tile; -inf where row and column are the same example, and in padding.

    Besides, which of the others are positives; None where none can be.
    """
    logits = affine.scale * cosines(rows.embeds, columns.embeds)
    if affine.bias is not None:
        logits = logits + affine.bias
    masked = rows.ids[:, None] == columns.ids[None, :]
    if padded:
        masked = masked | (rows.ids < 0)[:, None] | (columns.ids < 0)[None, :]
    logits = jnp.where(masked, -jnp.inf, logits)
    if rows.keys is None or columns.keys is None:
        return logits, None
    return logits, equal_pairs(rows.keys, columns.keys) & ~masked


def _cut(tree: Any, size: int | tuple[int, ...], id_fill: int) -> Any:
    """Pad the leading dimension to a multiple of `size` and split it in `[tiles, size, ...]`."""
    if isinstance(size, tuple):
        return tuple(_cut(t, s, id_fill) for t, s in zip(tree, size, strict=True))

    def cut(x: Array) -> Array:
        short = -x.shape[0] % size
        if short:
            fill = id_fill if jnp.issubdtype(x.dtype, jnp.integer) else 0
            widths = [(0, short)] + [(0, 0)] * (x.ndim - 1)
            x = jnp.pad(x, widths, constant_values=fill)
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _join(tree: Any, length: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:length], tree)


def _take(tree: Any, i: Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(tree: Any, i: Array, part: Any) -> Any:
    return jax.tree.map(lambda x, y: lax.dynamic_update_index_in_dim(x, y, i, 0), tree, part)
