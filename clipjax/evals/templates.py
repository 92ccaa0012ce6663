"""Prompt templates and class names: the sentences that turn a class name into a text to encode."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

__all__ = ["TEMPLATES", "fill_template", "load_class_names", "load_templates"]

# A tuple is the templates themselves; a string is a data file in prompts/ (source in its README).
TEMPLATES: dict[str, tuple[str, ...] | str] = {
    "plain": ("{}",),
    "simple": ("a photo of a {}.",),
    "emoji": ("{}", "{} emoji", "an emoji of a {}", "a drawing of a {}"),
    "openai_7": "openai_7.json",
    "openai_80": "openai_80.json",
    "imagenet": "openai_80.json",
}
CLASS_NAMES: dict[str, str] = {"imagenet": "imagenet_classes.json"}


def _read_packaged(file_name: str) -> tuple[str, ...]:
    text = (resources.files("clipjax.evals") / "prompts" / file_name).read_text(encoding="utf-8")
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


def _lookup(name_or_path: str, table: dict, what: str) -> dict[str, str]:
    if name_or_path in table:
        entry = table[name_or_path]
        strings = _read_packaged(entry) if isinstance(entry, str) else entry
        return {f"{name_or_path}, entry {number}": s for number, s in enumerate(strings, start=1)}
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"{what} {name_or_path!r} are neither a known name nor a file; known names: "
            f"{', '.join(sorted(table))}; a file holds one a line, or a JSON list"
        )
    return _read_strings(path, what)


def load_templates(name_or_path: str | Sequence[str]) -> tuple[str, ...]:
    """Loads prompt templates by name or from a file.

    Args:
        name_or_path: a name of TEMPLATES ("openai_80", alias "imagenet"; "openai_7"; "simple";
            "plain"; "emoji"), a text file with one template a line ('#' opens a comment), a JSON
            file with a list of strings, or the templates themselves in a list or tuple.

    Returns:
        The templates in order; each holds "{}" once, where the class name goes.

    Raises:
        ValueError: no such name or file, an empty list, or a template without exactly one "{}".

    Reference: arXiv:2103.00020, section 3.1.4.
    """
    if isinstance(name_or_path, str):
        found = _lookup(name_or_path, TEMPLATES, "templates")
    else:
        found = {f"templates[{number}]": s for number, s in enumerate(name_or_path)}
    if not found:
        raise ValueError("the list of templates is empty; give at least one, such as '{}'")
    for place, template in found.items():
        if template.count("{}") != 1:
            raise ValueError(
                f"{place}: the template {template!r} holds '{{}}' {template.count('{}')} times; "
                "it needs exactly one, where the class name goes"
            )
    return tuple(found.values())


def load_class_names(name_or_path: str) -> tuple[str, ...]:
    """Loads class names in label order: a name of CLASS_NAMES, a text file, or a JSON list.

    Raises:
        ValueError: no such name or file, or an empty list.
    """
    return tuple(_lookup(name_or_path, CLASS_NAMES, "class names").values())


def fill_template(template: str, class_name: str) -> str:
    """Puts a class name where the template's "{}" stands; braces in the name stay as they are."""
    return template.replace("{}", class_name)
