"""Tokens that were added to a vocabulary: found in a text before anything else is."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class AddedTokens:
    """Splits texts at added tokens, as transformers' tokenizers do.

    A token that is not normalized is found in the text as it is; a normalized one in the text in
    lower case. Of two that begin at one place the longer is found.

    Args:
        entries: `(token, id, normalized)` each.
        first_id: the least id that is not the vocabulary's own.

    Raises:
        ValueError: an entry is none, or an id or a token stands twice.
    """

    def __init__(self, entries: Iterable[Sequence[Any]], first_id: int):
        self.entries = tuple(tuple(entry) for entry in entries)
        for entry in self.entries:
            if not _is_entry(entry, first_id):
                raise ValueError(
                    f"added_tokens: {entry!r:.80} is no (token, id from {first_id}, normalized)"
                )
        for column, what in ((0, "tokens"), (1, "ids")):
            if len({entry[column] for entry in self.entries}) != len(self.entries):
                raise ValueError(f"added_tokens holds two equal {what}")
        self.names = {number: token for token, number, _ in self.entries}
        self._ids = {token: number for token, number, normalized in self.entries if not normalized}
        self._lower = {t.lower(): number for t, number, normalized in self.entries if normalized}
        self._raw_pattern, self._lower_pattern = _pattern(self._ids), _pattern(self._lower)

    def split(self, text: str, clean: Callable[[str], str]) -> list[str | int]:
        """A text as cleaned pieces and ids of added tokens, in their order."""
        found: list[str | int] = []
        for part in _split(text, self._raw_pattern, self._ids):
            if isinstance(part, int):
                found.append(part)
            else:
                found += _split(clean(part), self._lower_pattern, self._lower)
        return found


def _is_entry(entry: tuple[Any, ...], first_id: int) -> bool:
    if [type(x) for x in entry] != [str, int, bool]:
        return False
    return bool(entry[0].strip()) and first_id <= entry[1] < 1 << 24


def _pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None


def _split(text: str, pattern: re.Pattern[str] | None, ids: dict[str, int]) -> list[str | int]:
    if pattern is None:
        return [text]
    # The tokens are the odd ones of what a pattern with one group splits.
    parts = pattern.split(text)
    return [ids[part] if i % 2 else part for i, part in enumerate(parts)]
