"""Prompt templates: the sentences that turn a class name into texts to encode."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.classes.named_lists import (
    SETS_OF_IMAGENET,
    load_json,
    load_sets,
    load_strings,
)

# Templates of all classes, or for each class its own prompts.
Templates = tuple[str, ...] | dict[str, tuple[str, ...]]

# A tuple is the templates themselves; a string is a file in clipjax/data/prompts/ (source there).
_TEMPLATES: dict[str, tuple[str, ...] | str] = {
    "plain": ("{}",),
    "simple": ("a photo of a {}.",),
    "emoji": ("{}", "{} emoji", "an emoji of a {}", "a drawing of a {}"),
    "openai_7": "openai_7.json",
    "openai_80": "openai_80.json",
}
_IMAGENET = dict.fromkeys(
    (*SETS_OF_IMAGENET, "imagenet-a", "imagenet-r", "imagenet-o", "objectnet"), "openai_80.json"
)


def known_templates() -> dict[str, Any]:
    """Gives the packaged templates by name: themselves, or their file in prompts/."""
    return {**load_sets("templates"), **_TEMPLATES, **_IMAGENET}


def load_templates(
    given: str | os.PathLike[str] | Sequence[str] | Mapping[str, Any],
) -> Templates:
    """Loads prompt templates by name or from a file.

    Args:
        given: a name ("openai_80", alias "imagenet"; "openai_7"; "simple"; "plain"; "emoji"; that
            of an evaluation set, as "food101", see `load_sets`), a text file with one template a
            line ('#' opens a comment), a JSON file with a list of templates or a map from each
            class to its own prompts, `FILE.json:ENTRY` for what such a file holds under the name
            of a dataset, or the templates themselves.

    Returns:
        The templates in order, each with one "{}" where the class name goes; of class-specific
        prompts a map from class name to prompts, which may do without the name.

    Raises:
        ValueError: no such name or file, an empty list, or a template without exactly one "{}" or
            "{c}".

    Reference: arXiv:2103.00020, section 3.1.4; arXiv:2209.03320 for class-specific prompts.
    """
    if isinstance(given, str | os.PathLike):
        given = where = os.fspath(given)
        known = known_templates()
        found = known[given] if given in known else load_json(given, "templates")
        if not isinstance(found, Mapping):
            is_template = "{" in given
            hint = f"; a template itself goes into a list, [{given!r}]" if is_template else ""
            return _common(load_strings(given, known, "templates", hint=hint))
        given = found
    else:
        where = "templates"
    if isinstance(given, Mapping):
        return _class_specific(given, where)
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        raise ValueError(f"templates = {given!r:.80}: expected a name, or a list of texts")
    return _common({f"templates[{number}]": s for number, s in enumerate(given)})


def fill_template(template: str, class_name: str) -> str:
    """Puts a class name where the template's "{}" stands; braces in the name stay as they are."""
    return template.replace("{}", class_name)


def fill_templates(templates: Templates, class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """Gives the prompts of every class."""
    if not isinstance(templates, Mapping):
        return [tuple(fill_template(t, name) for t in templates) for name in class_names]
    missing = [name for name in class_names if name not in templates]
    if missing:
        raise ValueError(
            f"the prompts are those of {len(templates)} classes ({_some(templates)}), and "
            f"{len(missing)} of the {len(class_names)} class names are not among them "
            f"({_some(missing)}): give the class names that the prompts were written for; what a "
            "file holds under the name of a dataset is written FILE.json:NAME"
        )
    return [tuple(fill_template(t, name) for t in templates[name]) for name in class_names]


def _common(found: Mapping[str, str]) -> tuple[str, ...]:
    if not found:
        raise ValueError("the list of templates is empty; give at least one, such as '{}'")
    filled = {place: _with_plain_braces(template) for place, template in found.items()}
    for place, template in filled.items():
        if template.count("{}") != 1:
            raise ValueError(
                f"{place}: the template {found[place]!r} holds '{{}}' or '{{c}}' "
                f"{template.count('{}')} times; it needs exactly one, where the class name goes"
            )
    return tuple(filled.values())


def _class_specific(found: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    if found and all(isinstance(value, Mapping) for value in found.values()):
        if len(found) > 1:
            raise ValueError(
                f"{where} holds the prompts of several datasets: write {where}:NAME, one of "
                f"{_some(found)}"
            )
        ((name, found),) = found.items()
        where = f"{where}:{name}"
    prompts = {}
    for name, value in found.items():
        texts = (value,) if isinstance(value, str) else value
        is_list = isinstance(texts, list | tuple) and texts
        if not is_list or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"{where}: the prompts of {name!r} are {value!r:.80}, expected a list of one text "
                "or more"
            )
        prompts[name] = tuple(map(_with_plain_braces, texts))
    if not prompts:
        raise ValueError(f"{where} holds no class; write each class with a list of its prompts")
    return prompts


def _with_plain_braces(template: str) -> str:
    return template.replace("{c}", "{}")


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:3])) + (" ..." if len(names) > 3 else "")
