"""Convolutions of one pixel as what they are, products of matrices."""

from typing import Any

import jax


def convolve_pixels(inputs: jax.Array, kernel: jax.Array, *_: Any, **options: Any) -> jax.Array:
    """As `jax.lax.conv_general_dilated` of a kernel [1, 1, in, out], without strides or padding.

    XLA's CPU backend takes the gradient of such a kernel by its convolution at a tenth of the speed
    that it has for a product (docs/performance.md). Passed to `flax.linen.Conv` as its
    `conv_general_dilated`.

    Args:
        inputs: [batch, height, width, in].
        kernel: [1, 1, in, out].
        options: `precision` is read.
    """
    product = (((3,), (0,)), ((), ()))
    return jax.lax.dot_general(inputs, kernel[0, 0], product, precision=options.get("precision"))
