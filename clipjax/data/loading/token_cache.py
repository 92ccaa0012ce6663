"""Ids of captions that were met before, so that text costs next to nothing after one epoch."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

# Of an entry, beside the caption and its row: the place in the dict.
_OVERHEAD = 100


class TokenCache:
    """Rows of ids by caption, up to a budget.

    It is keyed by the text that the transforms left, so a caption that they change at random is
    looked up as what it became. When the budget is used up nothing more is kept and nothing is
    given up: epochs come round in another order each, where keeping the newest would keep what is
    needed last.

    One stage of a run has one cache. A later stage begins a new one, an earlier one goes past it.
    """

    def __init__(self, budget: int):
        self.budget, self.used = budget, 0
        self._stage = 0
        self._rows: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCache, (self.budget,)  # a worker process begins with an empty one

    def __len__(self) -> int:
        return len(self._rows)

    def tokenize(
        self, stage: int, tokenizer: Callable[[list[str]], np.ndarray], texts: list[str]
    ) -> np.ndarray:
        """Gives what `tokenizer(texts)` gives, ids i32 `[batch, length]`."""
        # What is no Tokenizer may make rows of any kind, or by other rules than one a caption.
        length = getattr(tokenizer, "context_length", None)
        vocab_size = getattr(tokenizer, "vocab_size", None)
        if not self.budget or length is None or vocab_size is None or stage < self._stage:
            return _ids(tokenizer, texts)
        with self._lock:
            if stage > self._stage:
                self._stage, self._rows, self.used = stage, {}, 0
            rows = self._rows
        found: list[Any] = [rows.get(text) for text in texts]
        dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
        missing = [slot for slot, row in enumerate(found) if row is None]
        if missing:
            made = _ids(tokenizer, [texts[slot] for slot in missing])
            low, high = made.min(initial=0), made.max(initial=0)
            if made.shape[1] != length or low < 0 or high >= vocab_size:
                raise ValueError(
                    f"the tokenizer gave ids {low}..{high} in rows of {made.shape[1]}; its "
                    f"vocab_size is {vocab_size}, its context_length {length}"
                )
            for slot, row in zip(missing, made.astype(dtype), strict=True):
                found[slot] = row.tobytes()
                self._keep(rows, texts[slot], found[slot])
        ids = np.frombuffer(b"".join(found), dtype).astype(np.int32)
        return ids.reshape(len(texts), length)

    def _keep(self, rows: dict[str, bytes], text: str, row: bytes) -> None:
        size = sys.getsizeof(text) + sys.getsizeof(row) + _OVERHEAD
        with self._lock:
            if rows is self._rows and text not in rows and self.used + size <= self.budget:
                rows[text] = row
                self.used += size


def _ids(tokenizer: Callable[[list[str]], np.ndarray], texts: list[str]) -> np.ndarray:
    """Gives a tokenizer's ids as i32 `[batch, length]`; ValueError if they are no such numbers."""
    made = tokenizer(texts)
    try:
        ids = np.asarray(made)
    except ValueError:  # rows of several lengths
        ids = np.empty(0, object)
    if ids.dtype.kind in "iu" and ids.ndim == 2 and len(ids) == len(texts):
        small = ids.astype(np.int32, copy=False)
        if np.array_equal(small, ids):
            return small
    raise ValueError(
        f"the tokenizer gave {type(made).__name__} {ids.dtype}{list(ids.shape)} of {len(texts)} "
        f"texts, expected int32 [{len(texts)}, length], of one length whatever the texts"
    )
