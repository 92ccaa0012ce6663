"""Unusable examples: counted by reason, and too many of them stop the run."""

import collections
import dataclasses
import re
import threading
from collections.abc import Sequence

# What is left out on purpose is counted, and does not stop a run.
FILTERED = "filtered_"
_SHARD = re.compile(r"[^:]*?\.tar(?=/)|[^/:]+(?=[/:])")


@dataclasses.dataclass(frozen=True)
class BadExample:
    """One example that was replaced: where it stood and why it is unusable."""

    position: int
    key: str
    reason: str
    message: str


class TooManyBadExamples(ValueError):
    """More examples than `max_bad_fraction` are unusable."""


class BadCount:
    """Counts replaced examples, over the whole run and over a window of the newest ones."""

    def __init__(self, max_fraction: float, window: int):
        self.by_reason: collections.Counter[str] = collections.Counter()
        self.by_shard: collections.Counter[str] = collections.Counter()
        self.last: collections.deque[BadExample] = collections.deque(maxlen=100)
        self._allowed, self._window = max_fraction * window, window
        self._batches: collections.deque[tuple[int, int]] = collections.deque()
        self._seen = self._bad = 0
        self._lock = threading.Lock()

    def add(self, seen: int, bad: list[BadExample]) -> None:
        """Counts a batch; TooManyBadExamples if the window holds more than is allowed."""
        with self._lock:
            self.by_reason.update(example.reason for example in bad)
            bad = [example for example in bad if not example.reason.startswith(FILTERED)]
            self.by_shard.update(shard_of(example.key) for example in bad)
            self.last.extend(bad)
            self._batches.append((seen, len(bad)))
            self._seen, self._bad = self._seen + seen, self._bad + len(bad)
            while self._seen > self._window and len(self._batches) > 1:
                old_seen, old_bad = self._batches.popleft()
                self._seen, self._bad = self._seen - old_seen, self._bad - old_bad
            if bad and self._bad > self._allowed:
                raise TooManyBadExamples(
                    f"{self._bad} of the last {self._seen} examples are unusable, allowed are "
                    f"{self._allowed:g} of {self._window} (data.max_bad_fraction). In all: "
                    f"{self._reasons()}. {self._worst()}Among them: {listed(list(self.last))}"
                )

    def _reasons(self) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in self.by_reason.most_common())

    def _worst(self) -> str:
        shards = [(name, n) for name, n in self.by_shard.most_common(4) if name][:3]
        named = ", ".join(f"{name} ({n})" for name, n in shards)
        return f"Most of them are in {named}. " if shards else ""


def shard_of(key: str) -> str:
    """The shard or file in which an example stands; empty where its key does not tell."""
    found = _SHARD.match(key)
    return found[0] if found else ""


def listed(bad: Sequence[BadExample]) -> str:
    """Names the last few, for messages."""
    return "; ".join(f"{b.key} ({b.reason}: {b.message})" for b in list(bad)[-5:])
