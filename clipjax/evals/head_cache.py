"""Classifiers of class names, kept on disk between evaluations of the same weights."""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from clipjax.data.storage.cache import cache_dir
from clipjax.encoding.templates import Templates
from clipjax.files import sha256, write_file
from clipjax.processes.distributed import gather, is_lead

# Those before are equal but for rounding: 1 of texts with the positions behind their ends, 2 by
# other products of CPUs, 3 of any dtype of the computation.
_FORMAT = "heads/4"


def head_path(
    weights_sha256: str | None,
    names: Sequence[str],
    templates: Templates,
    tokenizer: Any,
    dtype: str,
) -> Path | None:
    """Names the file of a classifier: another one for other weights, names, templates, tokenizer,
    dtype of the computation or devices; None where one of them cannot be told."""
    if weights_sha256 is None or not hasattr(tokenizer, "contract"):
        return None
    devices = jax.default_backend()
    parts = [_FORMAT, weights_sha256, names, templates, tokenizer.contract(), dtype, devices]
    return cache_dir() / "heads" / f"{sha256(json.dumps(parts, default=list))}.npz"


def cached_head(
    path: Path | None, num_classes: int, make: Callable[[], jax.Array]
) -> jax.Array | np.ndarray:
    """Reads a classifier where all processes have it, else makes and keeps it; a collective.

    Returns:
        `[classes, embed]`, float32, rows of length 1.
    """
    if path is None:
        return make()
    found = _read(path, num_classes)
    if all(gather(found is not None)):
        assert found is not None
        logging.info("the classifier of %d names is that of %s", num_classes, path)
        return found
    made = make()
    weights = jax.device_get(made)
    if np.isfinite(weights).all():
        _write(path, weights)
    return made


def _read(path: Path, num_classes: int) -> np.ndarray | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            weights = arrays["weights"]  # a zip file knows the CRC-32 of what it holds
        if weights.dtype != np.float32 or weights.ndim != 2 or len(weights) != num_classes:
            raise ValueError(f"it holds {weights.dtype} {list(weights.shape)}")
        return weights
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged and is made anew: %s", path, error)
        return None


def _write(path: Path, weights: np.ndarray) -> None:
    """Writes it by the lead, whole or not at all."""
    if not is_lead():
        return
    buffer = io.BytesIO()
    np.savez(buffer, weights=weights)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, buffer.getvalue())
    except OSError as error:
        logging.warning("the classifier is not kept: %s", error)
