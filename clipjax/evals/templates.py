"""Prompt templates: the sentences that turn a class name into a text to encode."""

from collections.abc import Sequence

from clipjax.data.named_lists import load_strings

__all__ = ["TEMPLATES", "fill_template", "load_templates"]

# A tuple is the templates themselves; a string is a file in clipjax/data/prompts/ (source there).
TEMPLATES: dict[str, tuple[str, ...] | str] = {
    "plain": ("{}",),
    "simple": ("a photo of a {}.",),
    "emoji": ("{}", "{} emoji", "an emoji of a {}", "a drawing of a {}"),
    "openai_7": "openai_7.json",
    "openai_80": "openai_80.json",
    "imagenet": "openai_80.json",
}


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
        found = load_strings(name_or_path, TEMPLATES, "templates")
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


def fill_template(template: str, class_name: str) -> str:
    """Puts a class name where the template's "{}" stands; braces in the name stay as they are."""
    return template.replace("{}", class_name)
