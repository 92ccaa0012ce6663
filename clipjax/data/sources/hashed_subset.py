"""Some of the examples, chosen by the hash of their keys: `tar:...?examples=5000`."""

import hashlib

import numpy as np
from absl import logging

from clipjax.data.source import DataSource, keys_of, pictures_of
from clipjax.data.sources.subset import Subset


class HashedSubset(Subset):
    """As many examples of a source as are asked for, always the same ones, in the source's order.

    Those are taken whose key has the smallest SHA-256, so which are taken depends neither on their
    order nor on a seed, and a larger number takes the smaller one's, too. Of a source without
    labels pictures are counted, each with all rows that show it.

    Args:
        source: what is chosen from.
        examples: how many.

    Raises:
        ValueError: the number is none, or the source has not as many.
    """

    def __init__(self, source: DataSource, examples: int):
        if not isinstance(examples, int) or isinstance(examples, bool) or examples < 1:
            raise ValueError(f"?examples={examples}: expected a whole number from 1")
        digests = [hashlib.sha256(key.encode()).digest() for key in keys_of(source)]
        pictures = list(range(len(source))) if source.class_names else pictures_of(source)
        smallest: dict[object, bytes] = {}
        for picture, digest in zip(pictures, digests, strict=True):
            smallest[picture] = min(digest, smallest.get(picture, digest))
        if examples > len(smallest):
            raise ValueError(
                f"?examples={examples}: the source has {len(smallest)}; leave the option out to "
                "take them all"
            )
        # Of equal keys the first one comes first.
        chosen = set(sorted(smallest, key=smallest.__getitem__)[:examples])
        kept = np.flatnonzero([picture in chosen for picture in pictures])
        super().__init__(source, kept, "hashed_subset/1")
        self.subset = {"examples": examples, "of": len(smallest)}
        logging.info(
            "examples=%d: %d of %d rows, by the SHA-256 of their keys",
            examples,
            len(self),
            len(source),
        )
