"""What is found to be wrong with a dataset, and how it is told."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.data.captions import flatten
from clipjax.data.source import SampleError, is_filtered


class Finding(NamedTuple):
    """A file, or a part of a dataset, and what is wrong with it."""

    where: str
    what: str


class Checked(NamedTuple):
    """What one task looked at: a file, or a range of examples.

    `left_out` counts by reason the examples that are left out on purpose.
    """

    examples: int
    findings: list[Finding]
    left_out: Mapping[str, int] = {}


def told(unusable: Mapping[str, list[str]], total: int) -> list[str]:
    """Counts what is unusable by reason, and names the first of each."""
    return [
        f"{len(keys)} of {total} examples are unusable [{reason}]: {keys[0]}"
        + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
        for reason, keys in sorted(unusable.items())
        if not is_filtered(reason)
    ]


def counted_left_out(unusable: Mapping[str, list[str]]) -> collections.Counter[str]:
    """Counts what is left out on purpose, by reason."""
    reasons = filter(is_filtered, unusable)
    return collections.Counter({reason: len(unusable[reason]) for reason in reasons})


def check_text(example: Mapping[str, Any], key: str) -> None:
    """Refuses an example that can neither be trained on nor, having a label, be evaluated."""
    if "label" not in example and not any(flatten(example["text"])):
        raise SampleError("text_empty", "the caption is empty", key)


def checked_file(
    examples: int, where: str, problems: Sequence[str], left_out: Mapping[str, int] | None = None
) -> Checked:
    """Makes one finding of all that is wrong with a file."""
    findings = [Finding(where, "; ".join(problems))] if problems else []
    return Checked(examples, findings, left_out or {})


def message_of(where: str, error: Exception) -> str:
    """Gives an error's message, without the file's name that it may begin with."""
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__}: {error}"
    return str(error).removeprefix(f"{where} ")
