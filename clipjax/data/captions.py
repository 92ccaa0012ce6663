"""The captions of a source, without its pictures' pixels."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from clipjax.data.source import DataSource, SampleError

ANY_LANGUAGE = "captions"  # the name of captions that come without one


def captions_by_language(source: DataSource, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Gives every caption of every example as (language, text).

    Args:
        source: whose examples have one text, several, or a map from language to either.
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
    """Gives the captions of one example as (language, text); empty ones are left out.

    Args:
        text: one caption, several, or a map from language to either.
        language: the name of captions that come without one.
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
