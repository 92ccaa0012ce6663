"""Some of the examples, chosen by the hash of their keys: `tar:...?examples=5000`."""

import hashlib
import heapq
from collections.abc import Hashable
from typing import Any

import numpy as np
from absl import logging

from clipjax.data.source import DataSource, keys_of, pictures_of
from clipjax.data.sources.subset import Subset
from clipjax.files import sha256


class HashedSubset(Subset):
    """As many examples of a source as are asked for, always the same ones, in the source's order.

    Those are taken whose key has the smallest SHA-256, so which are taken depends neither on their
    order nor on a seed, and a larger number takes the smaller one's, too. Of a source without
    labels pictures are counted, each with all rows that show it; of one of groups of captions, or
    of associations, these, with their pictures.

    Args:
        source: what is chosen from.
        examples: how many.

    Raises:
        ValueError: the number is none, or the source has not as many.
    """

    def __init__(self, source: DataSource, examples: int):
        if not isinstance(examples, int) or isinstance(examples, bool) or examples < 1:
            raise ValueError(f"?examples={examples}: expected a whole number from 1")
        of_groups = next((n for n in ("groups", "associations") if getattr(source, n, None)), None)
        identity = "hashed_subset/1"
        if of_groups is None:
            kept, total = self._pictures(source, examples)
        else:
            records = getattr(source, of_groups)
            total = len(records)
            digests = dict(enumerate(_digest(record.key) for record in records))
            chosen = [records[n] for n in sorted(_smallest(digests, examples))]
            kept = np.unique([image for record in chosen for image in record.images])
            places = {image: place for place, image in enumerate(kept.tolist())}
            moved = (r._replace(images=tuple(places[i] for i in r.images)) for r in chosen)
            setattr(self, of_groups, tuple(moved))
            self.smallest_category = getattr(source, "smallest_category", 1)
            identity = f"hashed_groups/1/{sha256(repr([record.key for record in chosen]))}"
        super().__init__(source, kept, identity)
        self.subset = {"examples": examples, "of": total}
        logging.info(
            "examples=%d: %d of %d %s, by the SHA-256 of their keys",
            examples,
            len(self) if of_groups is None else examples,
            len(source) if of_groups is None else total,
            "rows" if of_groups is None else of_groups,
        )

    def _pictures(self, source: DataSource, examples: int) -> tuple[np.ndarray, int]:
        """Chooses rows: their indices, and how many pictures they were chosen from."""
        pictures: list[Any] = list(range(len(source)))
        if not source.class_names:
            pictures = pictures_of(source)
        smallest: dict[Hashable, bytes] = {}
        for picture, key in zip(pictures, keys_of(source), strict=True):
            smallest[picture] = min(digest := _digest(key), smallest.get(picture, digest))
        chosen = _smallest(smallest, examples)
        return np.flatnonzero([picture in chosen for picture in pictures]), len(smallest)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _smallest(digests: dict[Any, bytes], examples: int) -> set[Any]:
    """The keys of the smallest digests; of equal ones the first come first."""
    if examples > len(digests):
        raise ValueError(
            f"?examples={examples}: the source has {len(digests)}; leave the option out to "
            "take them all"
        )
    return set(heapq.nsmallest(examples, digests, key=digests.__getitem__))
