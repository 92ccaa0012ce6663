"""Lists of strings by name or from a file: class names, and the templates of prompts."""

import json
from importlib import resources
from pathlib import Path

__all__ = ["load_class_names", "load_strings"]

# A file in prompts/, whose README names its source.
CLASS_NAMES: dict[str, str] = {"imagenet": "imagenet_classes.json"}


def _read_packaged(file_name: str) -> tuple[str, ...]:
    text = (resources.files("clipjax.data") / "prompts" / file_name).read_text(encoding="utf-8")
    return tuple(json.loads(text))


def _read_strings(path: Path, what: str) -> dict[str, str]:
    """Reads strings with the place of each: a JSON list, or one a line ('#' opens a comment)."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save the {what} as UTF-8") from error
    if path.suffix == ".json":
        try:
            strings = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}; write a list of strings") from error
        if not isinstance(strings, list) or not all(isinstance(s, str) for s in strings):
            raise ValueError(f"{path} is not a JSON list of strings; write the {what} as one")
        found = {f"{path}, entry {number}": s for number, s in enumerate(strings, start=1)}
    else:
        lines = enumerate((line.strip() for line in text.splitlines()), start=1)
        found = {f"{path}, line {n}": s for n, s in lines if s and not s.startswith("#")}
    if not found:
        raise ValueError(f"{path} holds no {what}; write one a line, or a JSON list of strings")
    return found


def load_strings(name_or_path: str, table: dict, what: str, *, hint: str = "") -> dict[str, str]:
    """Loads the strings of a name or a file.

    Args:
        name_or_path: a key of `table`, a text file, or a JSON file with a list of strings.
        table: name -> the strings themselves, or the name of a file in prompts/.
        what: the strings are, in plural, for messages.
        hint: how else they may be given, which ends the message of a name that is not known.

    Returns:
        Place (file and line, or entry) -> string, in order.

    Raises:
        ValueError: no such name or file, or an empty list.
    """
    if name_or_path in table:
        entry = table[name_or_path]
        strings = _read_packaged(entry) if isinstance(entry, str) else entry
        return {f"{name_or_path}, entry {number}": s for number, s in enumerate(strings, start=1)}
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"{what} {name_or_path!r} are neither a known name nor a file; known names: "
            f"{', '.join(sorted(table))}; a file holds one a line, or a JSON list{hint}"
        )
    return _read_strings(path, what)


def load_class_names(name_or_path: str) -> tuple[str, ...]:
    """Loads class names in label order: a name of CLASS_NAMES, a text file, or a JSON list.

    Raises:
        ValueError: no such name or file, or an empty list.
    """
    hint = f"; a single class is written `{name_or_path},` in a SPEC"
    return tuple(load_strings(name_or_path, CLASS_NAMES, "class names", hint=hint).values())
