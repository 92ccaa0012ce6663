"""An index that is searched again and again: held on the device, its pictures read when shown."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.data.inspect.contact_sheet import jpeg_of, thumbnails
from clipjax.data.source import DataSource
from clipjax.embeddings.index import Index, on_device
from clipjax.embeddings.search import block_rows, search
from clipjax.printable import printable
from clipjax.serving.limits import RefusedError


class Searcher:
    """An index and its pictures.

    Args:
        index: all of its embeddings are held on the device.
        source: of its pictures.
        most: results of a search.

    Raises:
        ValueError: the index is empty.

    Attributes:
        embed_dim: length of an embedding.
    """

    def __init__(self, index: Index, source: DataSource, most: int) -> None:
        if not len(index):
            raise ValueError("the index holds no picture: there is nothing to search")
        self._index, self._source = index, source
        self.embed_dim = index.embed_dim
        # One number of results for all searches: each is a compilation.
        self._most = min(most, len(index))
        rows = min(block_rows(1, self._most), len(index))
        self._blocks = [block._replace(embeds=on_device(block)) for block in index.blocks(rows)]

    def __len__(self) -> int:
        return len(self._index)

    def warm_up(self, most: int) -> None:
        """Compiles the search for up to so many queries at once."""
        for size in sorted({_padded(count) for count in range(1, most + 1)}):
            self.find([np.zeros(self.embed_dim, np.float32)] * size)

    def find(self, queries: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Gives (cosines, places) of what is nearest to each query, float32 `[embed]`."""
        padded = np.zeros((_padded(len(queries)), self.embed_dim), np.float32)
        padded[: len(queries)] = queries
        return list(zip(*search(padded, self._blocks, self._most), strict=True))[: len(queries)]

    def results(self, cosines: np.ndarray, places: np.ndarray) -> list[dict[str, Any]]:
        """Gives what is found, by its number in the index; of a key that is a path, its name."""
        return [
            {
                "number": place,
                "cosine": cosine,
                "key": printable(record["key"].rpartition("/")[2]),
                "captions": [printable(text) for text in record["captions"]],
            }
            for place, cosine, record in zip(
                places.tolist(), cosines.tolist(), self._index.records(places), strict=True
            )
        ]

    def picture(self, number: int) -> bytes:
        """Gives a small picture of the index as JPEG.

        Raises:
            RefusedError: there is none of that number, or it cannot be read.
        """
        if not 0 <= number < len(self):
            raise RefusedError(404, f"there is no such picture; they are 0 to {len(self) - 1}")
        (record,) = self._index.records([number])
        ((image, _, _),) = thumbnails(self._source, [record["row"]])
        if image is None:
            raise RefusedError(404, "the picture cannot be read")
        return jpeg_of(image)


def _padded(queries: int) -> int:
    """How many queries are searched for in place of so many: each number is a compilation."""
    return 1 << (queries - 1).bit_length()
