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
    """Brings a cell to the `text` of an example; what is empty or no text is left out.

    Args:
        value: a caption, as text or bytes, a list of captions, or a map from language to one of
            these.
        key: of the example.
        language: which entry of a map to take; None takes the map.

    Raises:
        SampleError: if no caption is left: `text_encoding` if one is not UTF-8, else
            `missing_language` if one was asked for, else `missing_text`.
    """
    faults: list[UnicodeDecodeError] = []
    chosen = language is not None and isinstance(value, Mapping)
    text = _usable(value.get(language) if chosen else value, faults)
    if text:
        return text
    if faults:
        raise SampleError("text_encoding", f"the caption is not UTF-8: {faults[0]}", key)
    if chosen:
        raise SampleError("missing_language", f"it has no caption in {language!r}", key)
    raise SampleError("missing_text", f"the caption is {value!r:.80}", key)


def _usable(value: Any, faults: list[UnicodeDecodeError]) -> Any:
    """What can be used of a caption, a list or a map; empty if nothing can."""
    if isinstance(value, Mapping):
        texts = {whole_text(str(name)): _usable(part, faults) for name, part in value.items()}
        return {name: text for name, text in texts.items() if text}
    if isinstance(value, list | tuple):
        found = (_usable(part, faults) for part in value if isinstance(part, str | bytes))
        texts = tuple(text for text in found if text)
        return texts[0] if len(texts) == 1 else texts
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            faults.append(error)
    if not isinstance(value, str) or value.isspace():
        return ""
    return whole_text(value)


def whole_text(text: str) -> str:
    """Replaces half of a surrogate pair, which JSON can spell and no file can hold, by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
