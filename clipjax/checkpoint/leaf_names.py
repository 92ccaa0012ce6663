"""Rules over the names of leaves: pairs that rename, patterns that choose."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def rename_leaves(
    leaves: Mapping[str, T], pairs: Iterable[tuple[str, str]], *, where: str
) -> dict[str, T]:
    """Gives leaves other names.

    Args:
        leaves: by name.
        pairs: (regular expression, replacement), applied to every name in order.
        where: config path or flag of the pairs, for messages.

    Raises:
        ValueError: a pair is no regular expression with its replacement, changes no name, or gives
            two leaves one name.
    """
    renamed = dict(leaves)
    for pair in pairs:
        pattern, replacement = _pair(pair, where)
        before = renamed
        renamed = {}
        for name, value in before.items():
            new_name = _substituted(pattern, replacement, name, where)
            if new_name in renamed:
                raise ValueError(
                    f"{where}: {pair[0]!r} gives two leaves the name {new_name!r}; make it match "
                    "one of them"
                )
            renamed[new_name] = value
        if renamed.keys() == before.keys():
            raise ValueError(
                f"{where}: {pair[0]!r} changes no name of the checkpoint; "
                f"names look like {next(iter(before), 'nothing')!r}"
            )
    return renamed


def matching_leaves(patterns: Iterable[str], names: Iterable[str], *, where: str) -> set[str]:
    """The names that one of the regular expressions is found in.

    Args:
        patterns: regular expressions.
        names: to choose from.
        where: config path or flag of the patterns, for messages.

    Raises:
        ValueError: a pattern is no regular expression, or matches no name.
    """
    found: set[str] = set()
    names = list(names)
    for pattern in patterns:
        search = compiled(pattern, where).search
        matches = {name for name in names if search(name)}
        if not matches:
            raise ValueError(
                f"{where}: {pattern!r} matches no leaf; names look like "
                f"{next(iter(names), 'nothing')!r}"
            )
        found |= matches
    return found


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A regular expression that a person wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{where}: {pattern!r} is no regular expression: {error}") from error


def _pair(pair: tuple[str, str], where: str) -> tuple[re.Pattern[str], str]:
    if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[1], str):
        raise ValueError(f"{where}: {pair!r} is no pair (regular expression, replacement)")
    return compiled(pair[0], where), pair[1]


def _substituted(pattern: re.Pattern[str], replacement: str, name: str, where: str) -> str:
    try:
        return pattern.sub(replacement, name)
    except (re.error, IndexError) as error:  # a group that the pattern does not have
        raise ValueError(
            f"{where}: {replacement!r} cannot replace {pattern.pattern!r}: {error}"
        ) from error
