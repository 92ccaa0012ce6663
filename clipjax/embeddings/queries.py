"""What is searched for: texts and pictures, added and taken away."""

from collections.abc import Sequence

import numpy as np

from clipjax.inference.opened import Opened


def check_query(texts: Sequence[str], images: Sequence[str], minus: Sequence[str]) -> None:
    """Refuses a query that asks for nothing; ValueError says so."""
    if any(not text.strip() for text in (*texts, *images, *minus)):
        raise ValueError("the query is empty: write what to look for, --query 'a red bicycle'")
    if not texts and not images:
        raise ValueError("give --query TEXT or --image FILE; --minus only takes away from them")


def query_of(
    opened: Opened, texts: Sequence[str], images: Sequence[str], minus: Sequence[str]
) -> np.ndarray:
    """Embeds a query: the sum of its texts and pictures, less what is taken away.

    Returns:
        `[embed]`, float32, of length 1.

    Raises:
        ValueError: it asks for nothing, or a picture that cannot be used.
    """
    check_query(texts, images, minus)
    model = opened.model
    return combine(
        model.encode_text([*texts]), model.encode_image([*images]), model.encode_text([*minus])
    )


def combine(texts: np.ndarray, images: np.ndarray, minus: np.ndarray) -> np.ndarray:
    """Makes one query of embeddings, each `[n, embed]`: the sum, less what is taken away.

    Returns:
        `[embed]`, float32, of length 1.

    Raises:
        ValueError: nothing is left.
    """
    found = texts.sum(0) - minus.sum(0)
    found += images.sum(0)
    length = float(np.linalg.norm(found))
    if length < 1e-6:
        raise ValueError("the query takes away all that it adds: nothing is left to look for")
    return found / np.float32(length)
