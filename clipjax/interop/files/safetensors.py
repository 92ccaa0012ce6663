"""safetensors: 8 bytes of header length, a JSON header, and the tensors' bytes.

The library judges the header. The bytes are read and written here, a tensor or its rows at a time:
the library maps the file, whose pages then count as memory of the process, and whose truncation
would kill it; and it writes what is in memory as a whole.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from clipjax.interop.files.atomic import new_path
from clipjax.interop.tensors import LazyTensor, WeightFile, WeightFileError
from clipjax.strict_json import parse_json

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
MAX_HEADER_BYTES = 32 << 20  # some 300,000 tensors; the library would take 100 MB
MAX_AXES = 16
PIECE_BYTES = 64 << 20


def read_safetensors(path: Path) -> WeightFile:
    """Opens a `.safetensors` file.

    Raises:
        WeightFileError: the header is damaged, lies about the data or names a tensor twice, or a
            tensor is of a kind that is not read here.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise WeightFileError(
                f"{path}: damaged: a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        text = file.read(length)
    try:  # refuses shapes and offsets that do not fit the file and one another, gaps, overlaps
        with safetensors.safe_open(path, "np"):
            pass
    except safetensors.SafetensorError as error:
        raise WeightFileError(f"{path}: damaged or cut off: {error}") from error
    try:
        header = parse_json(
            text, max_bytes=MAX_HEADER_BYTES
        )  # the library keeps one of equal names
    except ValueError as error:
        raise WeightFileError(f"{path}: damaged: {error}") from error
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (begin, _) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise WeightFileError(f"{path}: {name!r} has dtype {dtype!r}; known are {known}")
        if len(shape) > MAX_AXES:
            raise WeightFileError(f"{path}: {name!r} has {len(shape)} axes, at most {MAX_AXES}")
        tensors[name] = _lazy_tensor(path, DTYPES[dtype], shape, 8 + length + begin)
    return WeightFile(tensors, "safetensors", metadata)


def _lazy_tensor(path: Path, dtype: np.dtype, shape: tuple[int, ...], start: int) -> LazyTensor:
    def read_range(shape: tuple[int, ...], first: int) -> np.ndarray:
        return read_array(path, dtype, shape, start + first * dtype.itemsize)

    return LazyTensor.of_range(shape, dtype, read_range)


def read_array(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """Reads an array that lies in a file as it is.

    Raises:
        WeightFileError: the file ends before it does.
    """
    array = np.empty(shape, dtype)
    data = array.reshape(-1).view(np.uint8).data
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
    with new_path(Path(path)) as temporary, temporary.open("xb") as file:
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
                file.write(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)


def _pieces(tensor: LazyTensor) -> Iterator[tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    """(shape, read) of the parts that are written one after the other: rows, if they can be had."""
    if tensor.read_rows is None or tensor.nbytes <= PIECE_BYTES:
        yield tensor.shape, tensor.read
        return
    rows = max(1, PIECE_BYTES * tensor.shape[0] // tensor.nbytes)
    for start in range(0, tensor.shape[0], rows):
        stop = min(start + rows, tensor.shape[0])
        yield (stop - start, *tensor.shape[1:]), functools.partial(tensor.rows, start, stop)
