"""Weights and inputs that both sides of a parity test draw, from names alone.

`RandomState` is frozen by numpy, so the golden files hold results and no weights.
"""

import zlib

import numpy as np

GAIN = 2.0


def _random(name):
    return np.random.RandomState(zlib.crc32(name.encode()))


def weight(name, shape):
    """Draws the tensor of a torch state dict, far from any initial value, well conditioned."""
    noise = _random(name).standard_normal(shape).astype(np.float32)
    last = name.rsplit(".", 1)[-1]
    if last == "logit_scale":
        return np.full(shape, 2.5, np.float32)
    if last == "logit_bias":
        return np.full(shape, -3.0, np.float32)
    if last == "running_var":
        return 1 + 0.3 * np.abs(noise)
    if last in ("bias", "in_proj_bias", "running_mean"):
        return 0.1 * noise
    if last == "weight" and len(shape) == 1:
        return 1 + 0.2 * noise
    if "embed" in name or "latent" in name or len(shape) == 1:
        return 0.3 * noise
    if len(shape) == 4:
        # Convolutions keep their signal through activations, or every image ends as the biases do.
        return noise * np.float32(GAIN * np.prod(shape[1:]) ** -0.5)
    fan_in = shape[0] if last in ("proj", "text_projection") else int(np.prod(shape[1:]))
    return noise * np.float32(fan_in**-0.5)


def images(batch, size):
    """Normalised images `[batch, size, size, 3]`: four by four patches of a colour, and noise."""
    random = _random("images")
    coarse = random.standard_normal((batch, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    noise = random.standard_normal((batch, size, size, 3))
    return (1.5 * coarse + 0.5 * noise).astype(np.float32)


def tokens(batch, length, vocab_size):
    """Rows of ids `[batch, length]` with the largest id, the end, at different places."""
    random = _random("tokens")
    rows = random.randint(1, vocab_size - 1, (batch, length)).astype(np.int32)
    for i, end in enumerate(random.randint(2, length, batch)):
        rows[i, end] = vocab_size - 1
        rows[i, end + 1 :] = 0
    return rows


def patches(grids, num_patches, size):
    """Normalised patches `[images, num_patches, size]` of images of any aspect, padded with zeros.

    Args:
        grids: rows and columns of each image's patches.
        num_patches: with the padding.
        size: numbers of a patch.
    """
    values = _random("patches").standard_normal((len(grids), num_patches, size))
    for row, (rows, columns) in zip(values, grids, strict=True):
        row[rows * columns :] = 0
    return values.astype(np.float32)


def picture(height, width):
    """A picture of `[height, width, 3]` uint8."""
    return _random(f"picture {height} {width}").randint(0, 256, (height, width, 3)).astype(np.uint8)
