"""Writing a step folder leaf by leaf, for states that are not in memory: converted weights.

Orbax takes a whole state at once. This writes the same kind of folder in the plain form that Orbax
reads (one zarr array a leaf, not packed), one block in memory at a time, with a manifest like any
other step's.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.checkpoint.manifest import LeafRecord, check_metadata, commit_step
from clipjax.checkpoint.restore import STATE

_JAX_ARRAY = "jax.Array"
_PIECE = 2**20
_DICT_KEY = 2  # Orbax's number for a key of a dict


@dataclasses.dataclass(frozen=True)
class StreamedLeaf:
    """A leaf that is written block by block.

    Attributes:
        name: in the state, `params/image_encoder/...`.
        shape: of the whole leaf.
        num_blocks: equal parts along the first axis; 1 for the whole.
        read: gives the blocks in order, float32, each of shape `[shape[0] / num_blocks, ...]`.
    """

    name: str
    shape: tuple[int, ...]
    num_blocks: int
    read: Callable[[], Iterator[np.ndarray]]


def write_step(
    step_dir: Path,
    step: int,
    leaves: Iterable[StreamedLeaf],
    metadata: Mapping[str, Any],
    attachments: Mapping[str, bytes],
) -> None:
    """Writes a step folder; it counts as a checkpoint when this returns.

    Raises:
        ValueError: a leaf holds NaN or infinity, or metadata is no JSON.
    """
    metadata = check_metadata(metadata)
    state = step_dir / STATE
    state.mkdir(parents=True)
    records = tuple(_write_leaf(state, leaf) for leaf in leaves)
    _write_json(state / "_METADATA", _tree_metadata(records))
    (step_dir / "config").mkdir()
    _write_json(step_dir / "config" / "metadata", metadata["config"])
    commit_step(step_dir, step, records, metadata, attachments)


def _write_leaf(state: Path, leaf: StreamedLeaf) -> LeafRecord:
    folder = state / leaf.name.replace("/", ".")
    folder.mkdir()
    shape = leaf.shape
    block = (shape[0] // leaf.num_blocks, *shape[1:]) if shape else ()
    _write_json(folder / ".zarray", plain_zarray(shape, list(block)))
    digest, count = hashlib.sha256(), 0
    for number, value in enumerate(leaf.read()):
        if value.shape != block or value.dtype != np.float32:
            raise ValueError(f"{leaf.name}: block {number} is {value.dtype} {value.shape}")
        if not _is_finite(value):
            raise ValueError(f"{leaf.name} holds NaN or infinity; a checkpoint never does")
        data = np.asarray(value, order="C").reshape(-1).view(np.uint8).data
        digest.update(data)
        index = ".".join([str(number), *["0"] * (len(shape) - 1)])
        (folder / index).write_bytes(data)
        count += 1
    if count != leaf.num_blocks:
        raise ValueError(f"{leaf.name}: {count} blocks were given, {leaf.num_blocks} announced")
    return LeafRecord(leaf.name, shape, "float32", digest.hexdigest())


def plain_zarray(shape: tuple[int, ...], chunks: Any) -> dict[str, Any]:
    """What zarr says of an array of float32 whose blocks lie in files as they are."""
    return {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": chunks,
        "dtype": "<f4",
        "order": "C",
        "compressor": None,  # weights hardly shrink, and rows can be read on their own
        "fill_value": None,
        "filters": None,
        "dimension_separator": ".",
    }


def _is_finite(value: np.ndarray) -> bool:
    # In pieces: the answer for all elements at once would take a quarter of the tensor again.
    flat = value.reshape(-1)
    return all(np.isfinite(flat[i : i + _PIECE]).all() for i in range(0, flat.size, _PIECE))


def _tree_metadata(records: tuple[LeafRecord, ...]) -> dict[str, Any]:
    """What Orbax keeps beside the arrays: each leaf's path in the tree."""
    tree = {}
    for record in records:
        keys = record.name.split("/")
        tree[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
            "value_metadata": {
                "value_type": _JAX_ARRAY,
                "skip_deserialize": False,
                "write_shape": list(record.shape),
            },
        }
    return {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
