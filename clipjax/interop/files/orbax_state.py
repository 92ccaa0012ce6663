"""The arrays of a checkpoint's state folder, read one at a time.

A conversion writes blocks as they are, one file each, and so they are read. Training writes what
Orbax packs, which tensorstore reads.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from clipjax.checkpoint.streaming import plain_zarray
from clipjax.interop.files.safetensors import read_array
from clipjax.interop.section import read_json
from clipjax.interop.tensors import LazyTensor, WeightFileError

_FLOAT32 = np.dtype("<f4")


class StateReader:
    """Reads leaves of a state folder, whose files are verified.

    Raises:
        WeightFileError: it is not one of Orbax's.
    """

    def __init__(self, state: Path) -> None:
        self._state = state.absolute()
        metadata = read_json(self._state / "_METADATA")
        self._packed = bool(metadata.get("use_ocdbt"))
        # A stack of blocks that is packed as one piece: its rows are asked for one by one.
        self._kept: tuple[str, np.ndarray] | None = None

    def tensor(self, name: str, shape: tuple[int, ...]) -> LazyTensor:
        """The leaf of that name in the state, float32 on read."""
        key = name.replace("/", ".")
        if not self._packed:
            array = read_json(self._state / key / ".zarray")
            chunks: Any = array.get("chunks")
            if array == plain_zarray(shape, chunks) and _cuts_rows(chunks, shape):
                return self._plain_tensor(key, shape, chunks[0] if shape else 1)
        return LazyTensor(
            shape,
            _FLOAT32,
            lambda: self._unpack(key, shape),
            lambda start, stop: self._unpack_rows(key, shape, start, stop),
        )

    def _plain_tensor(self, key: str, shape: tuple[int, ...], step: int) -> LazyTensor:
        if not shape or step == shape[0]:

            def read_range(count: tuple[int, ...], first: int) -> np.ndarray:
                return self._read_block(key, len(shape), 0, count, first * _FLOAT32.itemsize)

            return LazyTensor.of_range(shape, _FLOAT32, read_range)

        def read_rows(start: int, stop: int) -> np.ndarray:
            block = (step, *shape[1:])
            numbers = range(start // step, -(-stop // step))
            if len(numbers) == 1 and (start % step, stop - start) == (0, step):
                return self._read_block(key, len(shape), numbers[0], block, 0)
            rows = np.concatenate([self._read_block(key, len(shape), n, block, 0) for n in numbers])
            first = numbers[0] * step
            return np.array(rows[start - first : stop - first], order="C")

        return LazyTensor(shape, _FLOAT32, lambda: read_rows(0, shape[0]), read_rows)

    def _read_block(
        self, key: str, num_axes: int, number: int, shape: tuple[int, ...], offset: int
    ) -> np.ndarray:
        name = ".".join([str(number), *["0"] * (num_axes - 1)])
        return read_array(self._state / key / name, _FLOAT32, shape, offset)

    def _open(self, key: str, shape: tuple[int, ...]) -> tensorstore.TensorStore:
        store = {"driver": "file", "path": f"{self._state}/{key}/"}
        if self._packed:
            store = {"driver": "ocdbt", "base": f"file://{self._state}/", "path": f"{key}/"}
        try:
            array = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True).result()
        except ValueError as error:
            raise WeightFileError(f"{self._state}: {key} cannot be read: {error}") from error
        if array.shape != shape:
            raise WeightFileError(f"{self._state}: {key} has shape {array.shape}, not {shape}")
        return array

    def _unpack(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(self._open(key, shape).read().result(), np.float32, order="C")

    def _unpack_rows(self, key: str, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # before the next is read, so that there is one at a time
            array = self._open(key, shape)
            chunk: Any = array.chunk_layout.read_chunk.shape  # None of a store that has no chunks
            if chunk[0] <= stop - start:
                return np.asarray(array[start:stop].read().result(), np.float32, order="C")
            self._kept = (key, self._unpack(key, shape))
        return self._kept[1][start:stop].copy()


def _cuts_rows(chunks: Any, shape: tuple[int, ...]) -> bool:
    """Whether blocks are equal ranges of the first axis."""
    if not isinstance(chunks, list) or len(chunks) != len(shape):
        return False
    if not shape:
        return True
    step = chunks[0]
    is_part = isinstance(step, int) and 0 < step <= shape[0] and shape[0] % step == 0
    return is_part and chunks[1:] == list(shape[1:])
