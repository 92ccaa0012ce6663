"""Who meets whom on which device: gather, grid and ring, inside one shard_map.

Every function here sees one device's slice of the batch, `b` of `batch` examples, image and text
of the same example on the same device. Device k of N owns examples `k b ... (k + 1) b - 1`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from clipjax.array_types import Array
from clipjax.losses.pair_rule import PairRule, Stats
from clipjax.losses.tiles import Affine, Gradients, Side, backward_tiles, forward_tiles, tile_length


@dataclasses.dataclass(frozen=True)
class DeviceGroup:
    """Devices that exchange blocks: those whose batch-axis index is in one row of `members`."""

    axes: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    rank_divisor: int

    @property
    def size(self) -> int:
        """Devices in each group."""
        return len(self.members[0])

    def rank(self) -> Array:
        """This device's place in its group."""
        return lax.axis_index(self.axes) // self.rank_divisor % self.size

    def gather(self, tree: Any) -> Any:
        """Concatenate every member's slice along the leading dimension."""
        if self.size == 1:
            return tree
        return jax.tree.map(
            lambda x: lax.all_gather(
                x, self.axes, axis_index_groups=self.members, axis=0, tiled=True
            ),
            tree,
        )

    def sum_scatter(self, x: Array) -> Array:
        """Sum over the members; each keeps its own slice of the leading dimension."""
        if self.size == 1:
            return x
        return lax.psum_scatter(
            x, self.axes, axis_index_groups=self.members, scatter_dimension=0, tiled=True
        )

    def max(self, x: Array) -> Array:
        """Elementwise maximum over the members."""
        if self.size == 1:
            return x
        return lax.pmax(x, self.axes, axis_index_groups=self.members)

    def own_slice(self, x: Array) -> Array:
        """This device's slice of a gathered array."""
        if self.size == 1:
            return x
        length = x.shape[0] // self.size
        return lax.dynamic_slice_in_dim(x, self.rank() * length, length)


class Topology(NamedTuple):
    """The batch axes, flattened to one line of devices, then folded to `p x q`."""

    axes: tuple[str, ...]
    num_devices: int

    def fold(self) -> tuple[int, int]:
        """`p <= q`, the most nearly square factors: grid traffic falls with p + q."""
        p = max(d for d in range(1, math.isqrt(self.num_devices) + 1) if self.num_devices % d == 0)
        return p, self.num_devices // p

    def row_group(self) -> DeviceGroup:
        """q neighbours: together they hold one row block of the grid."""
        p, q = self.fold()
        return DeviceGroup(self.axes, tuple(tuple(range(i * q, i * q + q)) for i in range(p)), 1)

    def column_group(self) -> DeviceGroup:
        """p devices q apart: together they hold one column block of the grid."""
        p, q = self.fold()
        return DeviceGroup(self.axes, tuple(tuple(range(j, p * q, q)) for j in range(q)), q)

    def everyone(self) -> DeviceGroup:
        """All devices in one group."""
        return DeviceGroup(self.axes, (tuple(range(self.num_devices)),), 1)

    def index(self) -> Array:
        """This device's number."""
        return lax.axis_index(self.axes) if self.num_devices > 1 else jnp.int32(0)

    def sum(self, x: Array) -> Array:
        """Sum over all devices."""
        return lax.psum(x, self.axes) if self.num_devices > 1 else x

    def varying(self, tree: Any) -> Any:
        """Mark constants as differing between devices, which loop carries have to be."""
        if self.num_devices == 1:
            return tree
        return jax.tree.map(lambda x: lax.pcast(x, self.axes, to="varying"), tree)

    def next(self, tree: Any) -> Any:
        """Receive what the previous device of the ring holds."""
        if self.num_devices == 1:
            return tree
        pairs = [(k, (k + 1) % self.num_devices) for k in range(self.num_devices)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axes, pairs), tree)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the blocks are laid over the devices, and the tile to work in."""

    rule: PairRule
    topology: Topology
    tile_size: int

    def own_ids(self, length: int) -> Array:
        """Global numbers of this device's examples."""
        return self.topology.index() * length + jnp.arange(length, dtype=jnp.int32)

    def tile(self, rows: Side, columns: Side) -> tuple[int, int]:
        """Tile shape for one block."""
        return tuple(tile_length(side.ids.shape[0], self.tile_size) for side in (rows, columns))

    def block_stats(self, rows: Side, columns: Side, affine: Affine) -> tuple[Stats, Stats]:
        """Statistics of one block, from nothing."""
        stats = self.topology.varying(
            (
                self.rule.init(rows.ids.shape[0], axis=1),
                self.rule.init(columns.ids.shape[0], axis=0),
            )
        )
        return forward_tiles(self.rule, rows, columns, stats, affine, self.tile(rows, columns))

    def block_gradients(
        self, rows: Side, columns: Side, normalisers: Any, affine: Affine, *, both: bool, bias: bool
    ) -> Gradients:
        """Gradients of one block, from nothing; those of the columns too if `both`."""

        def zeros(side):
            return jnp.zeros(side.embeds.shape, jnp.float32)

        start = Gradients(
            zeros(rows), zeros(columns) if both else None, jnp.float32(0.0) if bias else None
        )
        start = self.topology.varying(start)
        tile = self.tile(rows, columns)
        return backward_tiles(self.rule, rows, columns, normalisers, start, affine, tile)


class Gather(Layout):
    """All-gather both modalities; every device works on its own rows against everything.

    Receives 4 batch embed bytes in bfloat16 and sends back no gradient: each device computes the
    weights of its rows and those of its columns, 10 batch^2 embed / N FLOPs in all.
    """

    def forward(self, image: Array, text: Array, affine: Affine) -> tuple[Stats, Stats, Any]:
        """Statistics of this device's rows and columns, and the gathered texts to keep."""
        everyone = self.topology.everyone()
        ids = self.own_ids(image.shape[0])
        columns = everyone.gather(Side(text, ids))
        rows, columns_stats = self.block_stats(Side(image, ids), columns, affine)
        return rows, self.rule.merge(columns_stats, everyone), columns

    def backward(
        self, image: Array, text: Array, normalisers: Any, kept: Any, affine: Affine
    ) -> Gradients:
        """Gradients of this device's rows and columns."""
        everyone = self.topology.everyone()
        ids = self.own_ids(image.shape[0])
        row_norm, column_norm = normalisers
        rows = everyone.gather(Side(image, ids))
        all_rows, all_columns = everyone.gather(normalisers)
        of_image = self.block_gradients(
            Side(image, ids), kept, (row_norm, all_columns), affine, both=False,
            bias=affine.bias is not None,
        )  # fmt: skip
        of_text = self.block_gradients(
            Side(text, ids), rows, (column_norm, all_rows), affine, both=False, bias=False
        )
        return Gradients(of_image.rows, of_text.rows, of_image.bias)


class Grid(Layout):
    """Fold the devices to p x q; images meet texts once, on the device where their lines cross.

    Images are gathered along a row of the grid, texts along a column, gradients are summed and
    scattered back the same way: 12 batch embed / sqrt(N) bytes, 8 batch^2 embed / N FLOPs.
    """

    def forward(self, image: Array, text: Array, affine: Affine) -> tuple[Stats, Stats, Any]:
        """Statistics of this device's rows and columns, and the gathered block to keep."""
        along_row, along_column = self.topology.row_group(), self.topology.column_group()
        ids = self.own_ids(image.shape[0])
        rows, columns = along_row.gather(Side(image, ids)), along_column.gather(Side(text, ids))
        row_stats, column_stats = self.block_stats(rows, columns, affine)
        merge = self.rule.merge
        return merge(row_stats, along_row), merge(column_stats, along_column), (rows, columns)

    def backward(
        self, image: Array, text: Array, normalisers: Any, kept: Any, affine: Affine
    ) -> Gradients:
        """Gradients of this device's rows and columns."""
        del image, text
        along_row, along_column = self.topology.row_group(), self.topology.column_group()
        rows, columns = kept
        norms = along_row.gather(normalisers[0]), along_column.gather(normalisers[1])
        gradients = self.block_gradients(
            rows, columns, norms, affine, both=True, bias=affine.bias is not None
        )
        return Gradients(
            along_row.sum_scatter(gradients.rows),
            along_column.sum_scatter(gradients.columns),
            gradients.bias,
        )


class Ring(Layout):
    """Texts travel round a ring with their statistics and gradients; images stay.

    No device ever holds more than two blocks of texts: the least memory, in N hops.
    """

    def forward(self, image: Array, text: Array, affine: Affine) -> tuple[Stats, Stats, Any]:
        """Statistics of this device's rows and columns; nothing is kept."""
        topology = self.topology
        rows = Side(image, self.own_ids(image.shape[0]))
        stats = topology.varying(
            (self.rule.init(image.shape[0], axis=1), self.rule.init(text.shape[0], axis=0))
        )
        tile = self.tile(rows, rows)

        def hop(_, carry):
            columns, (row_stats, column_stats) = carry
            # The next block is asked for before the tiles, so that it arrives while they run.
            coming = topology.next(columns)
            row_stats, column_stats = forward_tiles(
                self.rule, rows, columns, (row_stats, column_stats), affine, tile
            )
            return coming, (row_stats, topology.next(column_stats))

        carry = (Side(text, rows.ids), stats)
        # After N hops every block, with its finished statistics, is at home again.
        _, (row_stats, column_stats) = lax.fori_loop(0, topology.num_devices, hop, carry)
        return row_stats, column_stats, None

    def backward(
        self, image: Array, text: Array, normalisers: Any, kept: Any, affine: Affine
    ) -> Gradients:
        """Gradients of this device's rows and columns."""
        del kept
        topology = self.topology
        rows = Side(image, self.own_ids(image.shape[0]))
        row_norm, column_norm = normalisers
        tile = self.tile(rows, rows)
        zeros = topology.varying(jnp.zeros(image.shape, jnp.float32))
        bias = topology.varying(jnp.float32(0.0)) if affine.bias is not None else None

        def hop(_, carry):
            (columns, column_norm), d_rows, d_columns, d_bias = carry
            # Both transfers start before the tiles: the next block, and the gradient that the
            # previous holder finished for the block which is here now.
            coming = topology.next((columns, column_norm))
            arrived = topology.next(d_columns)
            start = Gradients(d_rows, zeros, d_bias)
            done = backward_tiles(
                self.rule, rows, columns, (row_norm, column_norm), start, affine, tile
            )
            return coming, done.rows, arrived + done.columns, done.bias

        carry = ((Side(text, rows.ids), column_norm), zeros, zeros, bias)
        _, d_rows, d_columns, d_bias = lax.fori_loop(0, topology.num_devices, hop, carry)
        # The gradient runs one hop behind its block: a last hop brings it home.
        return Gradients(d_rows, topology.next(d_columns), d_bias)


LAYOUTS = {"gather": Gather, "grid": Grid, "ring": Ring}
