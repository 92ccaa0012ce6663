"""Which device computes which logits: the layouts gather, grid and ring, inside one shard_map.

Every function here sees one device's slice of the batch, `b` of `batch` examples, image and text
of the same example on the same device. Device k of N owns examples `k b ... (k + 1) b - 1`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from clipjax.array_types import Array
from clipjax.losses.equal_rows import Keys
from clipjax.losses.pair_rule import PairRule, Stats, no_positives
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
        """This device's index in its group."""
        return lax.axis_index(self.axes) // self.rank_divisor % self.size

    def all_gather(self, tree: Any) -> Any:
        """Concatenate every member's slice along the leading dimension."""
        if self.size == 1:
            return tree
        return jax.tree.map(
            lambda x: lax.all_gather(
                x, self.axes, axis_index_groups=self.members, axis=0, tiled=True
            ),
            tree,
        )

    def psum_scatter(self, x: Array) -> Array:
        """Sum over the members; each keeps its own slice of the leading dimension."""
        if self.size == 1:
            return x
        return lax.psum_scatter(
            x, self.axes, axis_index_groups=self.members, scatter_dimension=0, tiled=True
        )

    def pmax(self, x: Array) -> Array:
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


def grid_shape(num_devices: int) -> tuple[int, int]:
    """The most nearly square `p x q = num_devices`, p <= q: grid traffic falls with p + q."""
    p = max(d for d in range(1, math.isqrt(num_devices) + 1) if num_devices % d == 0)
    return p, num_devices // p


@dataclasses.dataclass(frozen=True)
class BatchDevices:
    """The N devices that share the batch, numbered row-major over the batch axes.

    Attributes:
        axes: the mesh axes that shard the batch; () for one device without a mesh.
        num_devices: N, the product of their sizes.
        varying_axes: axes over which the embeddings differ from device to device: `axes`, and in
            a user's own shard_map perhaps others.
    """

    axes: tuple[str, ...]
    num_devices: int
    varying_axes: tuple[str, ...]

    def row_group(self) -> DeviceGroup:
        """q neighbours: together they hold one row block of the grid."""
        p, q = grid_shape(self.num_devices)
        return DeviceGroup(self.axes, tuple(tuple(range(i * q, i * q + q)) for i in range(p)), 1)

    def column_group(self) -> DeviceGroup:
        """p devices q apart: together they hold one column block of the grid."""
        p, q = grid_shape(self.num_devices)
        return DeviceGroup(self.axes, tuple(tuple(range(j, p * q, q)) for j in range(q)), q)

    def all_devices(self) -> DeviceGroup:
        """All devices in one group."""
        return DeviceGroup(self.axes, (tuple(range(self.num_devices)),), 1)

    def index(self) -> Array:
        """This device's number."""
        return lax.axis_index(self.axes) if self.axes else jnp.int32(0)

    def psum(self, x: Array) -> Array:
        """Sum over all devices."""
        return lax.psum(x, self.axes) if self.axes else x

    def varying(self, tree: Any) -> Any:
        """Mark constants as differing between devices, which loop carries have to be."""
        if not self.varying_axes:
            return tree
        return jax.tree.map(lambda x: lax.pcast(x, self.varying_axes, to="varying"), tree)

    def ring_shift(self, tree: Any) -> Any:
        """Receive what the previous device of the ring holds."""
        if self.num_devices == 1:
            return tree
        pairs = [(k, (k + 1) % self.num_devices) for k in range(self.num_devices)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axes, pairs), tree)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the blocks of logits are laid over the devices, and the tile to work in.

    Attributes:
        rule: the loss, tile by tile.
        devices: that share the batch.
        tile_size: longest edge of a tile.
        dtype: that the embeddings are gathered and multiplied in.
    """

    rule: PairRule
    devices: BatchDevices
    tile_size: int
    dtype: np.dtype

    def own_ids(self, length: int) -> Array:
        """Global indices of this device's examples."""
        return self.devices.index() * length + jnp.arange(length, dtype=jnp.int32)

    def sides(self, image: Array, text: Array, keys: Keys | None) -> tuple[Side, Side]:
        """This device's images and texts as the two sides of a block."""
        ids = self.own_ids(image.shape[0])
        return Side(image, ids, keys), Side(text, ids, keys)

    def no_stats(self, rows: Side, columns: Side) -> tuple[Stats, Stats]:
        """Statistics of rows and of columns, before the first tile."""

        def of(side: Side, axis: int) -> Stats:
            num = side.ids.shape[0]
            stats = self.rule.init(num, axis=axis)
            if side.keys is None:
                return stats
            return stats._replace(positives=no_positives(num, axis=axis))

        return self.devices.varying((of(rows, 1), of(columns, 0)))

    def tile(self, rows: Side, columns: Side) -> tuple[int, int]:
        """Tile shape for one block."""
        return (
            tile_length(rows.ids.shape[0], self.tile_size),
            tile_length(columns.ids.shape[0], self.tile_size),
        )

    def block_stats(self, rows: Side, columns: Side, affine: Affine) -> tuple[Stats, Stats]:
        """Statistics of one block on its own."""
        stats = self.no_stats(rows, columns)
        return forward_tiles(self.rule, rows, columns, stats, affine, self.tile(rows, columns))

    def block_gradients(
        self, rows: Side, columns: Side, normalisers: Any, affine: Affine, *, both: bool, bias: bool
    ) -> Gradients:
        """Gradients of one block on its own; those of the columns too if `both`."""

        def zeros(side: Side) -> Array:
            return jnp.zeros(side.embeds.shape, jnp.float32)

        start = Gradients(
            zeros(rows), zeros(columns) if both else None, jnp.float32(0.0) if bias else None
        )
        start = self.devices.varying(start)
        tile = self.tile(rows, columns)
        return backward_tiles(self.rule, rows, columns, normalisers, start, affine, tile)


class Gather(Layout):
    """All-gather both modalities; every device works on its own rows against everything.

    Receives 4 batch embed bytes in bfloat16 and sends back no gradient: each device computes the
    weights of its rows and those of its columns, 10 batch^2 embed / N FLOPs in all.
    """

    def forward(self, image: Side, text: Side, affine: Affine) -> tuple[Stats, Stats, Any]:
        """Statistics of this device's rows and columns, and the gathered texts to keep."""
        group = self.devices.all_devices()
        columns = group.all_gather(text)
        rows, columns_stats = self.block_stats(image, columns, affine)
        return rows, self.rule.merge(columns_stats, group), columns

    def backward(
        self, image: Side, text: Side, normalisers: Any, kept: Any, affine: Affine
    ) -> Gradients:
        """Gradients of this device's rows and columns."""
        group = self.devices.all_devices()
        row_norm, column_norm = normalisers
        rows = group.all_gather(image)
        all_rows, all_columns = group.all_gather(normalisers)
        of_image = self.block_gradients(
            image, kept, (row_norm, all_columns), affine, both=False,
            bias=affine.bias is not None,
        )  # fmt: skip
        of_text = self.block_gradients(
            text, rows, (column_norm, all_rows), affine, both=False, bias=False
        )
        return Gradients(of_image.rows, of_text.rows, of_image.bias)


class Grid(Layout):
    """Fold the devices to p x q; device (r, c) computes row block r against column block c.

    Images are gathered along a row of the grid, texts along a column, gradients are summed and
    scattered back the same way: 12 batch embed / sqrt(N) bytes, 8 batch^2 embed / N FLOPs.
    """

    def forward(self, image: Side, text: Side, affine: Affine) -> tuple[Stats, Stats, Any]:
        """Statistics of this device's rows and columns, and the gathered block to keep."""
        along_row, along_column = self.devices.row_group(), self.devices.column_group()
        rows, columns = along_row.all_gather(image), along_column.all_gather(text)
        row_stats, column_stats = self.block_stats(rows, columns, affine)
        merge = self.rule.merge
        return merge(row_stats, along_row), merge(column_stats, along_column), (rows, columns)

    def backward(
        self, image: Side, text: Side, normalisers: Any, kept: Any, affine: Affine
    ) -> Gradients:
        """Gradients of this device's rows and columns."""
        del image, text
        along_row, along_column = self.devices.row_group(), self.devices.column_group()
        rows, columns = kept
        norms = along_row.all_gather(normalisers[0]), along_column.all_gather(normalisers[1])
        gradients = self.block_gradients(
            rows, columns, norms, affine, both=True, bias=affine.bias is not None
        )
        return Gradients(
            along_row.psum_scatter(gradients.rows),
            along_column.psum_scatter(gradients.columns),
            gradients.bias,
        )


class Ring(Layout):
    """Texts travel round a ring with their statistics and gradients; images stay.

    No device ever holds more than two blocks of texts: the least memory, in N hops.
    """

    def forward(self, image: Side, text: Side, affine: Affine) -> tuple[Stats, Stats, Any]:
        """Statistics of this device's rows and columns; nothing is kept."""
        devices = self.devices
        stats = self.no_stats(image, text)
        tile = self.tile(image, text)

        def hop(_: Array, carry: Any) -> Any:
            columns, (row_stats, column_stats) = carry
            # The transfer starts before the tiles, so that it overlaps with them.
            next_columns = devices.ring_shift(columns)
            row_stats, column_stats = forward_tiles(
                self.rule, image, columns, (row_stats, column_stats), affine, tile
            )
            return next_columns, (row_stats, devices.ring_shift(column_stats))

        carry = (text, stats)
        # After N hops every block, with its finished statistics, is back on its own device.
        _, (row_stats, column_stats) = lax.fori_loop(0, devices.num_devices, hop, carry)
        return row_stats, column_stats, None

    def backward(
        self, image: Side, text: Side, normalisers: Any, kept: Any, affine: Affine
    ) -> Gradients:
        """Gradients of this device's rows and columns."""
        del kept
        devices = self.devices
        row_norm, column_norm = normalisers
        tile = self.tile(image, text)
        zeros = devices.varying(jnp.zeros(image.embeds.shape, jnp.float32))
        bias = devices.varying(jnp.float32(0.0)) if affine.bias is not None else None

        def hop(_: Array, carry: Any) -> Any:
            (columns, column_norm), d_rows, d_columns, d_bias = carry
            # Both transfers start before the tiles: the next block, and the gradient that the
            # previous holder finished for the block which is here now.
            next_columns = devices.ring_shift((columns, column_norm))
            received = devices.ring_shift(d_columns)
            start = Gradients(d_rows, zeros, d_bias)
            done = backward_tiles(
                self.rule, image, columns, (row_norm, column_norm), start, affine, tile
            )
            return next_columns, done.rows, received + done.columns, done.bias

        carry = ((text, column_norm), zeros, zeros, bias)
        _, d_rows, d_columns, d_bias = lax.fori_loop(0, devices.num_devices, hop, carry)
        # The gradient is one hop behind its block: a last hop brings it to its own device.
        return Gradients(d_rows, devices.ring_shift(d_columns), d_bias)


AnyLayout = Gather | Grid | Ring
LAYOUTS: dict[str, type[AnyLayout]] = {"gather": Gather, "grid": Grid, "ring": Ring}
