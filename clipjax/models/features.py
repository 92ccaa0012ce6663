"""What a tower returns, before the projection into the shared space."""

from typing import Any, NamedTuple

import jax


class ImageFeatures(NamedTuple):
    """Output of an image encoder.

    Attributes:
        pooled: [batch, width].
        tokens: [batch, positions, width], before pooling.
        hidden: [depth, batch, positions, width] where asked for, else None.
    """

    pooled: jax.Array
    tokens: jax.Array
    hidden: Any = None


class TextFeatures(NamedTuple):
    """Output of a text encoder.

    Attributes:
        pooled: [batch, width].
        tokens: [batch, length, width], after the final normalisation.
        hidden: [depth, batch, length, width] where asked for, else None.
    """

    pooled: jax.Array
    tokens: jax.Array
    hidden: Any = None
