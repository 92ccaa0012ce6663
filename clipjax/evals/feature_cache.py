"""Features kept on disk between evaluations of the same weights, pixels and data."""

import io
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
from absl import logging

from clipjax.data.storage.cache import cache_dir
from clipjax.evals.features import Features
from clipjax.files import sha256, write_file
from clipjax.processes.distributed import gather, is_lead


def cache_path(weights_sha256: str, preprocess: object, data_fingerprint: str) -> Path:
    """Names the file of features: another one for other weights, pixels, data or devices."""
    parts = ("features/1", weights_sha256, repr(preprocess), data_fingerprint)
    name = sha256(json.dumps([*parts, jax.default_backend()]))
    return cache_dir() / "features" / f"{name}.npz"


def read_features(path: Path, num_images: int, max_bad: int) -> Features | None:
    """Reads features; None, in all processes, where one of them does not find them whole.

    A set with more bad images than are allowed is none: reading the images anew names them.
    """
    found = None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            found = Features(*(arrays[name] for name in Features._fields))
        if {len(part) for part in found} != {num_images}:
            raise ValueError(f"it holds {len(found.good)} images, and the data {num_images}")
        found = found if int(np.sum(~found.good)) <= max_bad else None
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged and is made anew: %s", path, error)
        found = None
    return found if all(gather(found is not None)) else None


def write_features(path: Path, features: Features) -> None:
    """Writes features, by the lead, whole or not at all."""
    if is_lead():
        buffer = io.BytesIO()
        np.savez(buffer, **features._asdict())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, buffer.getvalue())
