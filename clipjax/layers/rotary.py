"""Rotary positions on a square grid of patches (arXiv:2104.09864, arXiv:2403.13298)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.array_types import Array, Float

_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class Rotary2D:
    """Turns queries and keys by the column and the row of their patch.

    The first half of a head's dimensions turns by the column, the second by the row; neighbours
    2i and 2i + 1 are a pair, whose angle is the place times 10,000^(-i / pairs of the half).

    Attributes:
        side: patches of a side.
        num_extra: tokens in front that belong to no patch, 0 or 1. They are not turned, and where
            there is one, the first row and column are 1.
        reference_side: patches of a side that the places belong to: those of another grid are
            stretched to it. None: `side`.
    """

    side: int
    num_extra: int = 0
    reference_side: int | None = None

    def angles(self, head_dim: int) -> np.ndarray:
        """The angles of all pairs, `[num_extra + side * side, head_dim / 2]` float32.

        Raises:
            ValueError: a head of a width that is no multiple of 4.
        """
        if head_dim % 4:
            raise ValueError(f"rotary positions need heads of a multiple of 4, not {head_dim}")
        place = np.arange(self.side) + float(self.num_extra > 0)
        place *= (self.reference_side or self.side) / self.side
        half = place[:, None] * _BASE ** -(np.arange(head_dim // 4) / (head_dim // 4))
        columns, rows = np.tile(half, (self.side, 1)), np.repeat(half, self.side, axis=0)
        angles = np.concatenate([columns, rows], axis=1)
        return np.pad(angles, ((self.num_extra, 0), (0, 0))).astype(np.float32)

    def __call__(
        self, qkv: Float[Array, "batch length parts heads head_dim"]
    ) -> Float[Array, "batch length parts heads head_dim"]:
        """Turns the first two of the three parts, in float32."""
        turned = qkv[:, :, :2].astype(jnp.float32)
        angles = self.angles(qkv.shape[-1])[:, None, None]
        cos, sin = jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))
        even, odd = turned[..., ::2], turned[..., 1::2]
        pairs = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
        rotated: jax.Array = pairs.reshape(turned.shape).astype(qkv.dtype)
        return jnp.concatenate([rotated, qkv[:, :, 2:]], axis=2)
