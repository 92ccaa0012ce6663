"""What is found to be wrong with a dataset, and how it is told."""

from collections.abc import Iterable, Mapping
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


def check_text(example: Mapping[str, Any], key: str) -> None:
    """Refuses an example that can neither be trained on nor, having a label, be evaluated."""
    if "label" not in example and not any(flatten(example["text"])):
        raise SampleError("text_empty", "the caption is empty", key)


def checked_file(
    examples: int, where: str, problems: Iterable[str], unusable: Mapping[str, list[str]] = {}
) -> Checked:
    """Makes one finding of all that is wrong with a file.

    `unusable` are keys of examples by reason: they are counted, and the first of each is named.
    """
    left_out = {reason: len(keys) for reason, keys in unusable.items() if is_filtered(reason)}
    found = [*problems]
    for reason, keys in sorted(unusable.items()):
        if reason not in left_out:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            what = f"{len(keys)} of {examples} examples are unusable [{reason}]"
            found.append(f"{what}: {keys[0]}{more}")
    return Checked(examples, [Finding(where, "; ".join(found))] if found else [], left_out)


def message_of(where: str, error: Exception) -> str:
    """Gives an error's message, without the file's name that it may begin with."""
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__}: {error}"
    return str(error).removeprefix(f"{where} ")
