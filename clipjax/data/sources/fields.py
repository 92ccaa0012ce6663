"""Columns of a table: which holds what, and captions in their forms."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipjax.data.source import SampleError

IMAGE_FIELDS = ("image", "filepath", "file_path", "path", "file", "image_path", "file_name")
TEXT_FIELDS = ("text", "caption", "captions", "title")


def field_of(
    columns: Iterable[str], given: str | None, known: Sequence[str], option: str, where: str
) -> str:
    """Finds a column: the one that is given, else the first of the known names.

    Raises:
        ValueError: if there is none.
    """
    columns, candidates = list(columns), known if given is None else (given,)
    found = next((name for name in candidates if name in columns), None)
    if found is None:
        raise ValueError(
            f"{where} has the columns {', '.join(map(str, columns))}, none of them "
            f"{' or '.join(candidates)}: set data.source.{option}"
        )
    return found


def text_of(value: Any, key: str, language: str | None = None) -> Any:
    """Brings a cell to the `text` of an example.

    Args:
        value: a caption, a list of captions, or a map from language to one of these.
        key: of the example.
        language: which entry of a map to take; None takes the map.

    Raises:
        SampleError: `missing_text` if no caption is there, `missing_language` if not that one.
    """
    if isinstance(value, Mapping):
        if language is None:
            texts = {str(name): text_of(text, key) for name, text in value.items() if text}
            if not texts:
                raise SampleError("missing_text", "the map of captions is empty", key)
            return texts
        if not value.get(language):
            raise SampleError("missing_language", f"it has no caption in {language!r}", key)
        value = value[language]
    texts = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise SampleError("missing_text", f"the caption is {value!r}", key)
    return texts[0] if len(texts) == 1 else texts
