"""Embeddings to measure a loss with, the same for every side."""

import numpy as np


def random_embeddings(batch: int, embed: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, each text near its image, as a trained model has them."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((batch, embed), np.float32)
    text = image + rng.standard_normal((batch, embed), np.float32)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    return unit[0], unit[1]
