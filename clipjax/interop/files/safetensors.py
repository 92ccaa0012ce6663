"""safetensors: 8 bytes of header length, a JSON header, and the tensors' bytes.

Both ways are here because a header may lie: every offset, shape and dtype is checked against the
file's size before a byte is read, and a file is written tensor by tensor.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clipjax.interop.files.atomic import new_file
from clipjax.interop.tensors import LazyTensor, WeightFile, WeightFileError

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 16
PIECE_BYTES = 64 << 20


def read_safetensors(path: Path) -> WeightFile:
    """Opens a `.safetensors` file.

    Raises:
        WeightFileError: the header is damaged, or lies about the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise WeightFileError(
                f"{path}: damaged: a header of {length} bytes in a file of {size} (cut off?)"
            )
        header = _parse_header(path, file.read(length))
    start, room = 8 + length, size - 8 - length
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise WeightFileError(f"{path}: damaged: __metadata__ is not a map of strings")
    entries = {name: _check_entry(path, name, entry) for name, entry in header.items()}
    _check_layout(path, {name: (begin, end) for name, (_, _, begin, end) in entries.items()}, room)
    tensors = {
        name: _lazy_tensor(path, dtype, shape, start + begin)
        for name, (dtype, shape, begin, _) in entries.items()
    }
    return WeightFile(tensors, "safetensors", metadata)


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise WeightFileError(f"{path}: the header names {twice!r} twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=no_duplicates)
    except WeightFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise WeightFileError(f"{path}: damaged: the header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise WeightFileError(f"{path}: damaged: the header is no map of tensors")
    return header


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightFileError(
            f"{path}: damaged: {name!r} needs dtype, shape and data_offsets, it has {entry!r:.100}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WeightFileError(
            f"{path}: {name!r} has dtype {dtype!r:.50}; known are {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(_is_size, shape)):
        raise WeightFileError(f"{path}: damaged: {name!r} has shape {shape!r:.100}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise WeightFileError(f"{path}: damaged: {name!r} has data_offsets {offsets!r:.100}")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise WeightFileError(
            f"{path}: damaged: {name!r} of shape {shape} and dtype {dtype} takes {needed} bytes, "
            f"its data_offsets say {end - begin}"
        )
    return DTYPES[dtype], tuple(shape), begin, end


def _check_layout(path: Path, ranges: Mapping[str, tuple[int, int]], room: int) -> None:
    """The tensors must fill the data without a gap or an overlap."""
    position = 0
    for name, (begin, end) in sorted(ranges.items(), key=lambda item: item[1]):
        if begin != position:
            raise WeightFileError(
                f"{path}: damaged: {name!r} starts at byte {begin} of the data, where byte "
                f"{position} is next"
            )
        position = end
    if position != room:
        raise WeightFileError(
            f"{path}: damaged: the header tells of {position} bytes of data, the file has {room} "
            "(cut off?)"
        )


def _lazy_tensor(path: Path, dtype: np.dtype, shape: tuple[int, ...], start: int) -> LazyTensor:
    def read_range(shape: tuple[int, ...], offset: int) -> np.ndarray:
        return read_array(path, dtype, shape, start + offset)

    def read_rows(first: int, last: int) -> np.ndarray:
        row = math.prod(shape[1:]) * dtype.itemsize
        return read_range((last - first, *shape[1:]), first * row)

    return LazyTensor(shape, dtype, lambda: read_range(shape, 0), read_rows if shape else None)


def read_array(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """Reads an array that lies in a file as it is.

    Raises:
        WeightFileError: the file ends before it does.
    """
    array = np.empty(shape, dtype)
    data = memoryview(array.reshape(-1).view(np.uint8))
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while done < len(data):  # one call reads 2 GiB at most
            count = file.readinto(data[done:])
            if not count:
                raise WeightFileError(f"{path}: the file has become shorter while it was read")
            done += count
    return array


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a `.safetensors` file, one tensor in memory at a time, a large one by its rows.

    Args:
        path: a file that does not exist; it appears when it is whole.
        tensors: by name.
        metadata: strings of the header.

    Raises:
        WeightFileError: the file exists, or a tensor's dtype has no name in this format.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # Larger elements first, so that all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    position = 0
    for name, tensor in ordered:
        if tensor.dtype not in names:
            raise WeightFileError(f"{name}: safetensors has no name for dtype {tensor.dtype}")
        end = position + tensor.nbytes
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with new_file(Path(path)) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in ordered:
            for shape, read in _pieces(tensor):
                array = read()
                if array.shape != shape or array.dtype != tensor.dtype:
                    raise WeightFileError(
                        f"{name} was announced as {tensor.dtype} {shape} and read as "
                        f"{array.dtype} {array.shape}"
                    )
                file.write(memoryview(np.asarray(array, order="C").reshape(-1).view(np.uint8)))


def _pieces(tensor: LazyTensor) -> Iterator[tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    """(shape, read) of the parts that are written one after the other: rows, if they can be had."""
    if tensor.read_rows is None or tensor.nbytes <= PIECE_BYTES:
        yield tensor.shape, tensor.read
        return
    rows = max(1, PIECE_BYTES * tensor.shape[0] // tensor.nbytes)
    for start in range(0, tensor.shape[0], rows):
        stop = min(start + rows, tensor.shape[0])
        yield (stop - start, *tensor.shape[1:]), functools.partial(tensor.rows, start, stop)
