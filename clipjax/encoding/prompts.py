"""Which prompts an evaluation takes: those asked for, the dataset's, the run's, or `simple`."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from clipjax.encoding.templates import Templates, known_templates, load_templates
from clipjax.files import sha256

Given = str | os.PathLike[str] | Sequence[str] | Mapping[str, Any]

# Of a model that no run of ours trained, on a dataset without templates of its own.
DEFAULT = "simple"
_ARTICLE = re.compile(r"(a|an|the)\s", re.IGNORECASE)
_WORD_BEFORE = re.compile(r"\w\s*\{\}")


class Prompts(NamedTuple):
    """Prompt templates and where they are from."""

    templates: Templates
    origin: str

    def about(self) -> dict[str, Any]:
        """What they are, as plain JSON."""
        text = json.dumps(self.templates, ensure_ascii=False, sort_keys=True)
        found = {"from": self.origin, "sha256": sha256(text)}
        if isinstance(self.templates, Mapping):
            return found | {"classes": len(self.templates)}
        return found | {"count": len(self.templates), "first": self.templates[0]}


def choose_prompts(given: Given | None, source: Any = None, run: Prompts | None = None) -> Prompts:
    """Chooses the prompts: those given, else the dataset's own, else the run's, else `simple`.

    A dataset's own stand before those of the run, as they were written for its classes, and numbers
    of others on it were made with them.
    """
    if given is not None:
        name = repr(os.fspath(given)) if isinstance(given, str | os.PathLike) else "a list"
        return Prompts(load_templates(given), f"given: {name}")
    own = getattr(source, "templates", None)
    if own is not None:
        return Prompts(load_templates(own), "the dataset's own")
    return run or Prompts(load_templates(DEFAULT), f"the default: {DEFAULT!r}")


def prompts_of_run(config: Mapping[str, Any], where: str | Path) -> Prompts | None:
    """Gives the prompts that a run evaluated with, by the config that its checkpoint holds.

    Returns:
        Those of the first evaluation that has some; None if none has.

    Raises:
        ValueError: the checkpoint names a file, which it does not have inside: it is not opened.
    """
    evals = config.get("evals") or {}
    used = [e["templates"] for e in evals.values() if isinstance(e, Mapping) and e.get("templates")]
    if not used:
        return None
    first = used[0]
    if isinstance(first, str) and first not in known_templates():
        raise ValueError(
            f"the run of {where} took its templates from a file, {first!r}, and the checkpoint is "
            "from before their text went into it: give them by templates=FILE, "
            f"or a name of docs/evaluation.md"
        )
    name = f"{first!r}" if isinstance(first, str) else "its own"
    if any(other != first for other in used):
        logging.warning(
            "the evaluations of the run have several templates; taken are the first one's, %s", name
        )
    return Prompts(load_templates(first), f"the run's: {name}")


def stored_templates(given: Given) -> Given:
    """Writes templates as a checkpoint holds them: by their name, or else their text, as JSON."""
    if isinstance(given, str) and given in known_templates():
        return given
    found = load_templates(given)
    if isinstance(found, Mapping):
        return {name: list(prompts) for name, prompts in found.items()}
    return list(found)


def warn_of_articles(names: Sequence[str], prompts: Prompts) -> None:
    """Warns of names with an article, or whole sentences, that go into a sentence."""
    templates = prompts.templates
    if isinstance(templates, Mapping):
        return
    template = next((t for t in templates if _WORD_BEFORE.search(t)), None)
    odd = [
        name for name in names if _ARTICLE.match(name) or name.rstrip().endswith((".", "!", "?"))
    ]
    if template is None or not odd:
        return
    logging.warning(
        "%d of %d labels begin with an article or are sentences, e.g. %r, which becomes %r: give "
        "nouns, or take them whole by templates='plain'",
        len(odd),
        len(names),
        odd[0],
        template.replace("{}", odd[0]),
    )
