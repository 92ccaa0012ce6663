"""The captions of a source, without its pictures' pixels."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from clipjax.data.source import DataSource, SampleError

ANY_LANGUAGE = "captions"  # the name of captions that come without one
HOW = ("lines", "whole")  # what the option `captions` of a source may say


def check_how(captions: str | None, where: str) -> None:
    """Refuses another value of the option `captions` than those of `HOW`, or None."""
    if captions is not None and captions not in HOW:
        raise ValueError(
            f"captions={captions!r} of {where}: `lines` makes each line of a text a caption of its "
            "own, `whole` leaves a text whole"
        )


def as_lines(text: Any) -> Any:
    """Makes each line of a text, of several or of a map of them a caption of its own."""
    if isinstance(text, Mapping):
        return {name: as_lines(part) for name, part in text.items()}
    parts = (text,) if isinstance(text, str) else text
    lines = tuple(line for part in parts for line in _lines(part))
    return lines[0] if len(lines) == 1 else lines or ""


def has_lines(text: Any) -> bool:
    """Whether a text, or one of several or of a map of them, holds more lines than one."""
    if isinstance(text, Mapping):
        return any(map(has_lines, text.values()))
    parts = (text,) if isinstance(text, str) else text
    return any(len(_lines(part)) > 1 for part in parts)


def _lines(text: str) -> list[str]:
    # Not splitlines(): a caption may hold U+2028 and its like.
    if "\n" not in text:
        return [text]
    return [line.strip() for line in text.split("\n") if line.strip()]


def captions_by_language(source: DataSource, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Gives every caption of every example as (language, text).

    Args:
        counts: takes the examples that cannot be used, by reason.
    """
    for index in range(len(source)):
        try:
            text = source[index]["text"]
        except SampleError as error:
            counts[error.reason] += 1
            continue
        yield from flatten(text)


def flatten(text: Any, language: Any = ANY_LANGUAGE) -> Iterator[tuple[Any, str]]:
    """Gives the captions of one example as (language, text); those without one are in `language`.

    Empty ones are left out.
    """
    if isinstance(text, Mapping):
        for name, part in text.items():
            yield from flatten(part, name)
    elif isinstance(text, str):
        if text.strip():
            yield language, text
    else:
        for part in text:
            yield from flatten(part, language)
