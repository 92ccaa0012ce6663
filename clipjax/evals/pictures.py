"""Pictures rather than rows: a picture that several rows name is one, with all their captions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from clipjax.data.source import DataSource, Example, pictures_of, read_example
from clipjax.processes.distributed import gather, is_lead


class Pictures:
    """The pictures of a source in the order of their first rows.

    Which rows show the same picture the source says (`pictures_of`); the lead's word counts in all
    processes, so that they agree on the shapes of batches. A collective.
    """

    def __init__(self, source: DataSource, where: str):
        self._source, self.captions = source, getattr(source, "captions", None)
        found: dict[str, Any] = {}
        if is_lead():
            try:
                seen: dict[Any, int] = {}  # for each row the first one of the same picture
                rows = enumerate(pictures_of(source))
                found["first"] = [seen.setdefault(picture, row) for row, picture in rows]
            except (ValueError, OSError) as error:  # told to all, so that none waits for the lead
                found["error"] = f"{where}: {error}"
        found = gather(found)[0]
        if "error" in found:
            raise ValueError(found["error"])
        first = np.asarray(found["first"], np.int64)
        self._rows = np.argsort(first, kind="stable")
        self._starts = np.flatnonzero(first == np.arange(len(first)))
        # Rows by picture: those of picture i are `_rows[_ends[i] : _ends[i + 1]]`.
        counts = np.bincount(first, minlength=len(first))[self._starts]
        self._ends = np.concatenate([[0], np.cumsum(counts)])
        if len(self) < len(first) and is_lead():
            logging.info(
                "%s: %d rows show %d pictures; one that several rows show is one picture with the "
                "captions of all of them",
                where,
                len(first),
                len(self),
            )

    def __len__(self) -> int:
        return len(self._starts)

    def first_row(self, index: int) -> int:
        """The first row of the source that shows a picture."""
        return int(self._starts[index])

    def __getitem__(self, index: int) -> Example:
        """Reads a picture, with the captions of all rows that show it, as the rows have them."""
        rows = self._rows[self._ends[index] : self._ends[index + 1]].tolist()
        examples = [read_example(self._source, row) for row in rows]
        first, texts = examples[0], [example["text"] for example in examples]
        if len(rows) == 1:
            return first
        if found := next((text for text in texts if isinstance(text, Mapping)), None):
            return {**first, "text": found}  # which is refused
        lists = [(text,) if isinstance(text, str) else tuple(text or ()) for text in texts]
        return {**first, "text": tuple(text for texts in lists for text in texts)}
