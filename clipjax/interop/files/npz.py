""".npz: a zip archive of .npy arrays, as numpy.savez writes it, without pickles."""

import io
import math
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from clipjax.interop.files.zip_archive import ZipArchive
from clipjax.interop.tensors import LazyTensor, WeightFile, WeightFileError

_MAX_HEADER_BYTES = 10_000
_START_BYTES = _MAX_HEADER_BYTES + 16
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# numpy has no name for bfloat16 in a file: big_vision's leaves of it come back as two raw bytes.
_RAW_BFLOAT16 = np.dtype("V2")


def read_npz(path: Path) -> WeightFile:
    """Opens an `.npz` file; its names are those of the arrays, without `.npy`.

    Raises:
        WeightFileError: it is damaged, a bomb, or holds something else than plain arrays.
    """
    archive = ZipArchive(path)
    tensors = {}
    for member in archive.names():
        name = member.removesuffix(".npy")
        if name == member:
            raise WeightFileError(f"{path}: member {member!r} is no array (.npy)")
        tensors[name] = _lazy_tensor(archive, member)
    return WeightFile(tensors, "npz")


def _lazy_tensor(archive: ZipArchive, member: str) -> LazyTensor:
    file = io.BytesIO(archive.read_start(member, _START_BYTES))
    try:
        version = npy.read_magic(file)
        shape, is_fortran, dtype = _READ_HEADER[version](file, max_header_size=_MAX_HEADER_BYTES)
    except Exception as error:  # the header is Python's text, and its reader raises many kinds
        raise WeightFileError(
            f"{archive.path}: damaged: member {member!r} has no .npy header ({error!r:.200})"
        ) from error
    if dtype == _RAW_BFLOAT16:
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif dtype.hasobject or dtype.kind not in "fiub":
        raise WeightFileError(
            f"{archive.path}: member {member!r} has dtype {dtype}: only numbers are read, "
            "pickled objects never are"
        )
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise WeightFileError(f"{archive.path}: damaged: member {member!r} has shape {shape}")
    start = file.tell()
    needed = start + math.prod(shape) * dtype.itemsize
    if needed != archive.size(member):
        raise WeightFileError(
            f"{archive.path}: damaged: member {member!r} of shape {shape} and dtype {dtype} takes "
            f"{needed} bytes, it has {archive.size(member)}"
        )
    native = dtype.newbyteorder("=")

    def read_range(shape: tuple[int, ...], first: int) -> np.ndarray:
        offset = start + first * dtype.itemsize
        return archive.read_array(member, dtype, shape, offset).astype(native, copy=False)

    if is_fortran and len(shape) > 1:
        return LazyTensor(
            shape, native, lambda: np.array(read_range(shape[::-1], 0).transpose(), order="C")
        )
    return LazyTensor.of_range(shape, native, read_range)
