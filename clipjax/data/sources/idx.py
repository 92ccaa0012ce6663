"""Small grey pictures in IDX files, the form of MNIST: `idx:DIR:train`."""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from clipjax.data.source import Example
from clipjax.data.storage.files import read, stat
from clipjax.data.storage.paths import DataPath, data_path
from clipjax.data.storage.retrying import is_wrong_path
from clipjax.files import sha256

PREFIXES = {"train": "train", "test": "t10k"}
MAX_BYTES = 1 << 31  # of a file, unpacked; all of it is held in memory
_UINT8 = 8  # how IDX calls the type


class Idx:
    """Pictures and their classes, a file of each, packed with gzip or not.

    MNIST, Fashion-MNIST and KMNIST are published so: `train-images-idx3-ubyte`,
    `train-labels-idx1-ubyte`, and `t10k-...` of the test. A picture is grey, `[rows, columns]`; as
    an example it has three equal channels. All of them are held in memory.

    Args:
        where: the folder.
        split: `train` or `test`.
        class_names: names of the classes, in the order of their numbers; else these are the names.

    Raises:
        ValueError: no such split or file, a file that is damaged or of another kind, as many
            labels as there are no pictures, or a label without a name.
    """

    def __init__(
        self, where: str, split: str | None = None, *, class_names: Sequence[str] | None = None
    ):
        if split not in PREFIXES:
            raise ValueError(
                f"idx:{where} has the splits {', '.join(PREFIXES)}, not {split}: write "
                f"idx:{where}:train"
            )
        folder, prefix = data_path(where), PREFIXES[split]
        self._images, of_images = _read(folder, f"{prefix}-images-idx3-ubyte", 3)
        labels, of_labels = _read(folder, f"{prefix}-labels-idx1-ubyte", 1)
        if len(labels) != len(self._images):
            raise ValueError(
                f"{folder} holds {len(self._images)} pictures of {split} and {len(labels)} labels"
            )
        self._labels: list[int] = labels.tolist()
        count = max(self._labels, default=-1) + 1
        names = tuple(class_names) if class_names is not None else tuple(map(str, range(count)))
        if count > len(names):
            raise ValueError(
                f"idx:{where}:{split} has the class {count - 1}, and {len(names)} names of "
                "classes, which are counted from 0: give a name to each"
            )
        self.class_names = names
        self._prefix = prefix
        self._identity = f"idx/1/{names}/{of_images}/{of_labels}"

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        label = self._labels[index]
        return {
            "image": np.repeat(self._images[index][:, :, None], 3, axis=2),
            "text": self.class_names[label],
            "key": f"{self._prefix}-{index}",
            "label": label,
        }

    def labels(self) -> Iterator[int]:
        """Gives the labels of all examples in order."""
        return iter(self._labels)

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        return (f"{self._prefix}-{index}" for index in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256 of the class names and of the bytes of both files, unpacked."""
        return sha256(self._identity)


def _read(folder: DataPath, name: str, dimensions: int) -> tuple[np.ndarray, str]:
    """The array of a file, and the SHA-256 of its bytes, unpacked.

    Raises:
        ValueError: there is no such file, or it is not one of unsigned bytes of so many dimensions.
    """
    data, found = _unpacked(folder, name)
    header = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, _UINT8, dimensions)) or len(data) < header:
        raise ValueError(
            f"{found} is no IDX file of unsigned bytes of {dimensions} dimensions: it begins with "
            f"{data[:4].hex() or 'nothing'}"
        )
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    size = int(np.prod(shape, dtype=object))
    if size != len(data) - header:
        raise ValueError(f"{found} is damaged: {len(data) - header} bytes of {shape}")
    array = np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    return array, sha256(data)


def _unpacked(folder: DataPath, name: str) -> tuple[bytes, DataPath]:
    for path in (folder / name, folder / f"{name}.gz"):
        try:
            size = stat(path).size
            if size > MAX_BYTES:
                raise ValueError(f"{path} has {size:,} bytes, above {MAX_BYTES:,}")
            data = read(path, 0, size)
        except OSError as error:
            if not is_wrong_path(error):
                raise
            continue
        if not path.name.endswith(".gz"):
            return data, path
        try:
            unpacking = zlib.decompressobj(wbits=31)
            data = unpacking.decompress(data, MAX_BYTES)
        except zlib.error as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if not unpacking.eof:
            raise ValueError(f"{path} is cut off, or unpacks to more than {MAX_BYTES:,} bytes")
        return data, path
    raise ValueError(f"{folder} holds neither {name} nor {name}.gz")
