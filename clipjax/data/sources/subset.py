"""Some of the examples of a source, in the source's order."""

import json
from collections.abc import Hashable, Iterator

import numpy as np
from absl import logging

from clipjax.data.source import FACTS, DataSource, Example, keys_of, pictures_of
from clipjax.files import sha256


class Subset:
    """Examples that are kept of a source; base of the filters.

    Args:
        kept: `[kept]` integers in ascending order, indices of the source.
        identity: what chose them; begins the fingerprint.

    Attributes:
        class_names, and the `FACTS`: those of the source.
        whole: the source, or what that is a part of.
    """

    def __init__(self, source: DataSource, kept: np.ndarray, identity: str):
        self._source, self._identity = source, identity
        self.whole: DataSource = getattr(source, "whole", source)
        self.class_names = getattr(source, "class_names", None)
        for fact in FACTS:
            setattr(self, fact, getattr(source, fact, None))
        self._kept = kept.astype(np.uint32 if len(source) < 1 << 32 else np.uint64)

    def count(self, rule: str, **left_out: int) -> None:
        """Notes and logs as `counts` what a rule keeps, and what it leaves out and why."""
        self.counts = {"kept": len(self), **left_out}
        total = len(self._source)
        logging.info("%s keeps %d of %d examples: %s", rule, len(self), total, self.counts)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._source[int(self._kept[index])]

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        kept = set(self._kept.tolist())
        return (key for index, key in enumerate(keys_of(self._source)) if index in kept)

    def pictures(self) -> Iterator[Hashable]:
        """Says whose picture each example shows, as the source does."""
        found = pictures_of(self._source)
        return (found[index] for index in self._kept.tolist())

    def fingerprint(self) -> str:
        """SHA-256 of the source's own and of which examples are kept."""
        kept = sha256(self._kept.astype("<u8").tobytes())
        identity = [self._identity, self._source.fingerprint(), kept]
        return sha256(json.dumps(identity))
