"""Columns of a table: which holds what, captions in their forms, and classes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.data.captions import as_lines
from clipjax.data.source import SampleError
from clipjax.data.storage.text_files import not_utf8

IMAGE_FIELDS = (
    *("image", "filepath", "file_path", "path", "file", "image_path", "file_name"),
    *("image_name", "filename", "jpg", "png", "webp"),  # the last are bytes of img2dataset
)
TEXT_FIELDS = ("text", "caption", "captions", "title", "comment")
_MAX_DEPTH = 8  # of maps of captions in each other; one, of languages, is usual


def field_of(
    columns: Iterable[str], given: str | None, known: Sequence[str], option: str, where: str
) -> str:
    """Finds the one column that is given, else that of the first of the known names.

    A column in capitals is found where none has the name as it is written.
    """
    columns, candidates = [str(name) for name in columns], known if given is None else (given,)
    found = next((name for name in candidates if name in columns), None)
    if found is None:
        lowered = [name.strip().lower() for name in columns]
        wanted = next((name.lower() for name in candidates if name.lower() in lowered), None)
        alike = [name for name, low in zip(columns, lowered, strict=True) if low == wanted]
        if len(set(alike)) > 1:
            raise ValueError(
                f"{where} has the columns {' and '.join(alike)}, which differ in capitals alone: "
                f"give one by ?{option}=NAME in the SPEC"
            )
        found = alike[0] if alike else None
    if found is None:
        web = option == "image_field" and "url" in (name.lower() for name in columns)
        files = "; pictures have to be files: img2dataset downloads those of a url" if web else ""
        raise ValueError(
            f"{where} has the columns {', '.join(columns)}, none of them "
            f"{' or '.join(candidates)}: give ?{option}=NAME in the SPEC{files}"
        )
    if columns.count(found) > 1:
        raise ValueError(f"{where} has the column {found!r} more than once: rename all but one")
    return found


def fields_of(
    columns: Iterable[str],
    given: str | Sequence[str] | None,
    where: str,
    *,
    label_field: str | None = None,
) -> tuple[str, ...]:
    """Finds the columns with captions; several, where they are given so, and none where there is a
    column of classes instead.
    """
    names = (given,) if isinstance(given, str) or given is None else given
    columns = list(columns)
    if given is None and label_field is not None:
        lowered = {str(name).strip().lower() for name in columns if name != label_field}
        if lowered.isdisjoint(TEXT_FIELDS):
            return ()
    return tuple(field_of(columns, name, TEXT_FIELDS, "text_field", where) for name in names)


def group_fields(given: str | Sequence[str]) -> tuple[str, ...]:
    """Gives the names of what examples are counted by: of one, or of several."""
    return (given,) if isinstance(given, str) else tuple(given)


def group_text(value: Any, key: str) -> str:
    """Writes the group that a cell names; empty where it names none.

    A whole number is written as one, however it is held: 5.0 is the group 5.

    Raises:
        SampleError: `text_encoding`, if it is bytes and not UTF-8.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SampleError("text_encoding", f"the group {not_utf8(error)}", key) from error
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.0f}" if value.is_integer() else str(value)
    return "" if value is None else str(value)


def renamed(name: str, value: Any, old_name: str, old_value: Any, where: str) -> Any:
    """Gives the value of an option that had another name before; either may be given."""
    if value is not None and old_value is not None:
        raise ValueError(f"{where}: {old_name} is the old name of {name}: give {name} alone")
    return old_value if value is None else value


def text_of(value: Any, key: str, language: str | None = None, captions: str | None = None) -> Any:
    """Brings a cell to the `text` of an example; what is empty or no text is left out.

    Where a language is asked for, a caption that does not say its own is in another.

    Args:
        value: a caption, as text or bytes, a list of captions, or a map from language to one of
            these.
        language: which entry of a map to take; None takes the map.
        captions: `lines` makes each line of a text a caption of its own.

    Raises:
        SampleError: if no caption is left: `text_encoding` if one is not UTF-8, else
            `filtered_language` if there are some but not in that language, else `missing_text`.
    """
    faults: list[UnicodeDecodeError] = []
    chosen = language is not None and isinstance(value, Mapping)
    text = _usable(value.get(language) if chosen else value, faults)
    if text and (chosen or language is None):
        return as_lines(text) if captions == "lines" else text
    if faults:
        raise SampleError("text_encoding", f"the caption {not_utf8(faults[0])}", key)
    if text or chosen:
        raise SampleError("filtered_language", f"it has no caption in {language!r}", key)
    raise SampleError("missing_text", f"the caption is {value!r:.80}", key)


def _usable(value: Any, faults: list[UnicodeDecodeError], depth: int = _MAX_DEPTH) -> Any:
    """What can be used of a caption, a list or a map; empty if nothing can."""
    if depth == 0:
        return ""
    if isinstance(value, Mapping):
        texts = {
            whole_text(str(name)): _usable(part, faults, depth - 1) for name, part in value.items()
        }
        return {name: text for name, text in texts.items() if text}
    if isinstance(value, list | tuple):
        found = (_usable(part, faults) for part in value if isinstance(part, str | bytes))
        captions = tuple(text for text in found if text)
        return captions[0] if len(captions) == 1 else captions
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
