"""What one's own code hands a model: lists of pictures and of texts, options, a mesh."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from PIL import Image

from clipjax.config_fields import DTYPES
from clipjax.data.images.preprocess import PIXELS
from clipjax.partitioning import MESH_AXES, make_mesh
from clipjax.ranges import Choice, Rule, whole

# A path, encoded bytes, a Pillow image, or a uint8 array [height, width, 3 or 4].
ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
OPTIONS: dict[str, Rule] = {
    "batch_size": whole(1),
    "dtype": DTYPES,
    "preprocess": Choice(tuple(PIXELS)),
}


def check_arguments(rules: Mapping[str, Rule], **values: Any) -> None:
    """Checks arguments by their rules; a scalar of NumPy counts as the number that it holds."""
    for name, value in values.items():
        rules[name].check(value.item() if isinstance(value, np.generic) else value, name)


def entries(given: Any, caller: str, what: str) -> list[Any]:
    """The entries of a list, an array or a generator; ValueError for one entry alone."""
    shape = getattr(given, "shape", (1,))  # pixels of one image have 2 or 3 axes
    alone = isinstance(given, str | bytes | os.PathLike | Image.Image) or len(shape) not in (1, 4)
    if alone or not isinstance(given, Iterable):
        found = f"an array of shape {shape}" if len(shape) > 1 else f"{given!r:.80}"
        raise ValueError(
            f"{caller} takes a list of {what}s, not {found}; put the one {what} in a list"
        )
    return list(given)


def strings(given: Any, caller: str) -> list[str]:
    """The entries of a list of strings; ValueError names one that is none."""
    found = entries(given, caller, "string")
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"{caller} takes a list of strings; entry {number} is {text!r:.80}")
    return found


def own_mesh(mesh: Mesh | None) -> Mesh:
    """The mesh that rows lie over: that of one device if None; all of one of other axes share."""
    if mesh is None:
        return make_mesh({"data": 1}, jax.local_devices()[:1])
    if mesh.axis_names == MESH_AXES and set(mesh.axis_types) == {AxisType.Auto}:
        return mesh
    return make_mesh({"data": -1}, list(mesh.devices.flat))
