"""What is found to be wrong with a dataset, and how it is told."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.data.captions import flatten
from clipjax.data.source import SampleError


class Finding(NamedTuple):
    """A file, or a part of a dataset, and what is wrong with it."""

    where: str
    what: str


class Checked(NamedTuple):
    """What one task looked at: a file, or a range of examples."""

    examples: int
    findings: list[Finding]


def told(unusable: Mapping[str, list[str]], total: int) -> list[str]:
    """Counts what is unusable by reason, and names the first of each."""
    return [
        f"{len(keys)} of {total} examples are unusable [{reason}]: {keys[0]}"
        + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
        for reason, keys in sorted(unusable.items())
    ]


def check_text(example: Mapping[str, Any], key: str) -> None:
    """Refuses an example that can neither be trained on nor, having a label, be evaluated."""
    if "label" not in example and not any(flatten(example["text"])):
        raise SampleError("text_empty", "the caption is empty", key)


def checked_file(examples: int, where: str, problems: Sequence[str]) -> Checked:
    """Makes one finding of all that is wrong with a file."""
    return Checked(examples, [Finding(where, "; ".join(problems))] if problems else [])


def message_of(where: str, error: Exception) -> str:
    """Gives an error's message, without the file's name that it may begin with."""
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__}: {error}"
    return str(error).removeprefix(f"{where} ")
