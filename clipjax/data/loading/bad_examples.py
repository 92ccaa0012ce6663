"""Unusable examples: counted by reason, and too many of them stop the run."""

import collections
import dataclasses
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.source import is_filtered

_PARTS = 100  # of the window that a checkpoint brings back
_SHARD = re.compile(r"[^:]*?\.(?:tar|array_record)(?=/)|[^/:]+(?=[/:])")


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
        self.last: collections.deque[BadExample] = collections.deque(maxlen=100)
        self._allowed, self._window = max_fraction * window, window
        # Of every batch in the window: how many examples, and in which shards the bad ones are.
        self._batches: collections.deque[tuple[int, collections.Counter[str]]] = collections.deque()
        self._seen, self._bad = 0, collections.Counter[str]()
        self._lock = threading.Lock()

    def add(self, seen: int, bad: list[BadExample]) -> None:
        """Counts a batch; TooManyBadExamples if the window holds more than is allowed."""
        with self._lock:
            self.by_reason.update(example.reason for example in bad)
            bad = [example for example in bad if not is_filtered(example.reason)]
            self.last.extend(bad)
            self._enter(seen, collections.Counter(shard_of(example.key) for example in bad))
            if bad and self._bad.total() > self._allowed:
                reasons = ", ".join(f"{n} {reason}" for reason, n in self.by_reason.most_common())
                raise TooManyBadExamples(
                    f"{self._bad.total()} of the last {self._seen} examples are unusable, allowed "
                    f"are {self._allowed:g} of {self._window} (data.max_bad_fraction). In all: "
                    f"{reasons}. {worst(self._bad)}`clipjax data pack` leaves them out once and "
                    "for all; or raise data.max_bad_fraction. Among them: "
                    f"{listed(list(self.last))}"
                )

    def state(self) -> dict[str, Any]:
        """Gives what a checkpoint keeps, JSON-able: all by reason, and the window's numbers."""
        with self._lock:
            window = {"seen": self._seen, "bad": self._bad.total()}
            return {"by_reason": dict(sorted(self.by_reason.items())), "window": window}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on counting from a `state`. Of the window's shards nothing is known any more."""
        with self._lock:
            self.by_reason = collections.Counter(state["by_reason"])
            self._batches.clear()
            self._seen, self._bad = 0, collections.Counter[str]()
            for number in range(_PARTS):  # so that they leave the window little by little
                part = share_of(state, number, _PARTS)["window"]
                if part["seen"]:
                    self._enter(part["seen"], collections.Counter({"": part["bad"]}))

    def _enter(self, seen: int, shards: collections.Counter[str]) -> None:
        self._batches.append((seen, shards))
        self._seen += seen
        self._bad += shards
        while self._seen > self._window and len(self._batches) > 1:
            old_seen, old_shards = self._batches.popleft()
            self._seen -= old_seen
            self._bad -= old_shards


def add_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds the states of all processes of a run."""
    parts = {
        name: sum((collections.Counter(state[name]) for state in states), collections.Counter())
        for name in ("by_reason", "window")
    }
    window = {name: parts["window"][name] for name in ("seen", "bad")}
    return {"by_reason": dict(sorted(parts["by_reason"].items())), "window": window}


def share_of(state: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    """Gives process `index` of `count` its part of a sum: of the window as much as each of the
    others, and what was counted before to the first alone."""
    window = {
        name: n * (index + 1) // count - n * index // count for name, n in state["window"].items()
    }
    return {"by_reason": dict(state["by_reason"]) if index == 0 else {}, "window": window}


def shard_of(key: str) -> str:
    """The shard or file in which an example stands; empty where its key does not tell."""
    found = _SHARD.match(key)
    return found[0] if found else ""


def worst(shards: collections.Counter[str]) -> str:
    """Names the shards with most unusable examples, for messages; empty where none is known."""
    named = [f"{name} ({n})" for name, n in shards.most_common(4) if name][:3]
    return f"Most of them are in {', '.join(named)}. " if named else ""


def listed(bad: Sequence[BadExample]) -> str:
    """Names the last few, for messages."""
    return "; ".join(f"{b.key} ({b.reason}: {b.message})" for b in list(bad)[-5:])
