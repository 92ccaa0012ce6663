"""What is searched for: texts and pictures, added and taken away."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.data.storage.files import local_path
from clipjax.embeddings.index import Index
from clipjax.inference.opened import Opened, open_model
from clipjax.interop import hub
from clipjax.interop.weights import NO_HINTS, Hints


def open_model_of(
    index: Index, checkpoint: str | None = None, hints: Hints = NO_HINTS, **options: Any
) -> Opened:
    """Opens the model whose embeddings an index holds.

    Args:
        checkpoint: where it is now; by default where it was.
        hints: what its files cannot say.
        **options: mesh, batch_size; see `Model`.

    Raises:
        ValueError: it is another model, or there is none.
    """
    told = index.about["model"]
    path = checkpoint or told["checkpoint"]
    if not path.startswith(hub.PREFIX) and not local_path(path).exists():
        raise ValueError(
            f"{path} is not there, where the model of {index.directory} was: say where it is by "
            "--checkpoint"
        )
    pixels = index.about["preprocess"]["pixels"]
    opened = open_model(path, hints, dtype=told["dtype"], preprocess=pixels, **options)
    if opened.weights_sha256 != told["sha256"]:
        raise ValueError(
            f"{index.directory} holds embeddings of another model, {told['name']} of step "
            f"{told['step']}, SHA-256 {told['sha256']}; {path} is of step {opened.step}, "
            f"{opened.weights_sha256}: give that one by --checkpoint, of a run that went on its "
            f"checkpoints/{told['step']}, with the flags that `clipjax embed` had "
            "(--which, --activation and the like), or embed the data with this one"
        )
    return opened


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
