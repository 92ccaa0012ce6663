"""Tensors of a file that are read one at a time, so that no file need fit in memory."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np


class WeightFileError(ValueError):
    """A file of weights is damaged, foreign, refused, or does not hold what it must."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is asked for.

    Attributes:
        shape: of the array that `read` returns.
        dtype: likewise; `ml_dtypes.bfloat16` included.
        read: reads this tensor now, as a C-contiguous array of the caller's own; nothing is kept.
        read_rows: `(start, stop)` reads that range of the first axis, where the file can do so
            without reading the rest; use `rows`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    read_rows: Callable[[int, int], np.ndarray] | None = None

    @classmethod
    def of_range(
        cls,
        shape: tuple[int, ...],
        dtype: np.dtype,
        read_range: Callable[[tuple[int, ...], int], np.ndarray],
    ) -> "LazyTensor":
        """Elements that lie in order: `read_range(shape, first)` reads those from `first` on."""
        row = math.prod(shape[1:])

        def read_rows(start: int, stop: int) -> np.ndarray:
            return read_range((stop - start, *shape[1:]), start * row)

        return cls(shape, dtype, lambda: read_range(shape, 0), read_rows if shape else None)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Reads `array[start:stop]`."""
        if self.read_rows is not None:
            return self.read_rows(start, stop)
        return np.array(self.read()[start:stop], order="C")

    def row(self, index: int) -> "LazyTensor":
        """The tensor `array[index]`, for files that stack what we keep apart."""
        return LazyTensor(self.shape[1:], self.dtype, lambda: self.rows(index, index + 1)[0])

    def followed_by(self, other: "LazyTensor", index: int) -> "LazyTensor":
        """The tensor of `array[:index]` and then `other[index:]`; both have one shape."""

        def read() -> np.ndarray:
            parts = self.rows(0, index), other.rows(index, self.shape[0])
            return np.concatenate([x.astype(dtype, copy=False) for x in parts])

        dtype, index = np.promote_types(self.dtype, other.dtype), min(index, self.shape[0])
        return LazyTensor(self.shape, dtype, read)

    def astype(self, dtype: Any) -> "LazyTensor":
        """The same tensor, converted on read."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        return LazyTensor(
            self.shape,
            dtype,
            lambda: self.read().astype(dtype),
            lambda start, stop: self.rows(start, stop).astype(dtype),
        )


def of_array(array: np.ndarray) -> LazyTensor:
    """Makes the LazyTensor of an array in memory."""
    array = np.asarray(array)
    return LazyTensor(array.shape, array.dtype, lambda: np.array(array, order="C"))


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        tensors: by their names in the file.
        kind: of the file.
        metadata: strings and numbers that the file holds beside the tensors.
    """

    tensors: Mapping[str, LazyTensor]
    kind: Literal["safetensors", "torch", "npz"]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
