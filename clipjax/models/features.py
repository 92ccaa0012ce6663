"""What a tower returns, before the projection into the shared space."""

from typing import Any, NamedTuple

import jax


class ImageFeatures(NamedTuple):
    """Output of an image encoder.

    Attributes:
        pooled: [batch, width].
        tokens: [batch, positions, width], before pooling.
        hidden: None; with `keep_hidden=True` the output of every block, [depth, batch, positions,
            width]; with `keep_hidden=k` that of block k (from 1) alone. Convolutional towers give
            a tuple of one map [batch, height, width, channels] a stage instead, for any of these.
    """

    pooled: jax.Array
    tokens: jax.Array
    hidden: Any = None


class TextFeatures(NamedTuple):
    """Output of a text encoder.

    Attributes:
        pooled: [batch, width].
        tokens: [batch, length, width], after the final normalisation.
        hidden: None; with `keep_hidden=True` the output of every block, [depth, batch, length,
            width]; with `keep_hidden=k` that of block k (from 1) alone.
    """

    pooled: jax.Array
    tokens: jax.Array
    hidden: Any = None
