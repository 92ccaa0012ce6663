"""Lists of strings by name or from a file: class names, and the templates of prompts."""

import functools
import gzip
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from absl import logging

from clipjax.data.storage.text_files import decode_text
from clipjax.ranges import nearest
from clipjax.strict_json import parse_fields

# Files in prompts/, whose README names their sources.
_IMAGENET = "imagenet_classes.json"
_FASHION_MNIST = "fashion_mnist_classes.json"
_SETS = "sets.json.gz"
# Sets whose classes are ImageNet's 1,000.
SETS_OF_IMAGENET = ("imagenet", "imagenet1k", "imagenetv2", "imagenet_sketch")


def _read_packaged(file_name: str) -> Any:
    data = (resources.files("clipjax.data") / "prompts" / file_name).read_bytes()
    return json.loads(gzip.decompress(data) if file_name.endswith(".gz") else data)


@functools.cache
def load_sets(kind: str) -> Mapping[str, Any]:
    """Gives what was published with evaluation sets, by the name of the set (`food101`).

    A name with a language (`imagenet1k/it`) is a translation; `clip/NAME` is that of the CLIP
    paper where CLIP_benchmark has another.

    Args:
        kind: `class_names`, lists in the order of the labels; `class_ids`, what folders of these
            classes are called (WordNet ids); or `templates`, lists of these, or maps from class to
            prompts.
    """
    return _read_packaged(_SETS)[kind]


def known_class_names() -> dict[str, Any]:
    """Gives the packaged lists of class names: name -> the names, or their file in prompts/."""
    of_files = {**dict.fromkeys(SETS_OF_IMAGENET, _IMAGENET), "fashion_mnist": _FASHION_MNIST}
    return {**load_sets("class_names"), **of_files}


def load_json(name: str, what: str) -> Any:
    """Reads a JSON file, or of one that is an object, as `FILE.json:ENTRY`, what it holds there.

    Returns:
        The value; None if there is no JSON file of that name.
    """
    file, colon, entry = os.path.expanduser(name), "", ""
    if not Path(file).is_file():
        file, colon, entry = file.rpartition(":")
    path = Path(file)
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    text = decode_text(path.read_bytes(), path)
    try:
        found = parse_fields(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; write a list of strings") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; keep one of them") from error
    if found is None:
        raise ValueError(f"{path} holds null; write a list of strings")
    if not colon:
        return found
    if not isinstance(found, dict) or entry not in found:
        known = f"; it has {', '.join(found)}" if isinstance(found, dict) else ""
        raise ValueError(f"{path} holds no {what} under the name {entry!r}{known}")
    return found[entry]


def strings_of_lines(text: str, where: str, *, comments: bool) -> dict[str, str]:
    """Reads strings with the place of each: one a line.

    Args:
        comments: whether '#' opens a comment and blank lines are left out; else every line counts,
            as its number is a label.

    Raises:
        ValueError: if every line counts, and a blank one stands before another.
    """
    lines = dict(enumerate((line.strip() for line in text.rstrip().split("\n")), start=1))
    if comments:
        lines = {n: s for n, s in lines.items() if s and not s.startswith("#")}
    elif any(lines.values()) and (blank := next((n for n, s in lines.items() if not s), None)):
        raise ValueError(
            f"{where}, line {blank} is blank: the line's number is the class's label, so each "
            "holds a name; remove the line, or write the name there"
        )
    return {f"{where}, line {n}": s for n, s in lines.items() if s}


def load_strings(
    name_or_path: str, table: Mapping[str, Any], what: str, *, comments: bool = True, hint: str = ""
) -> dict[str, str]:
    """Loads the strings of a name or a file.

    Args:
        name_or_path: a key of `table`, a text file, or a JSON file with a list of strings; where
            that holds a list under each of several names, `FILE.json:NAME`.
        table: name -> the strings themselves, or the name of a file in prompts/.
        hint: how else they may be given, which ends the message of a name that is not known.

    Returns:
        Place (file and line, or entry) -> string, in order.
    """
    name, path = name_or_path, Path(name_or_path).expanduser()
    entry = table.get(name)
    strings = _read_packaged(entry) if isinstance(entry, str) else entry or load_json(name, what)
    if entry is not None:  # as published: one set has a class without a name
        return {f"{name}, entry {number}": s for number, s in enumerate(strings, start=1)}
    if strings is None:
        if not path.is_file() or path.suffix.lower() == ".json":
            raise ValueError(
                f"{what} {name!r} are neither a known name nor a file; of the {len(table)} names "
                f"the nearest are {nearest(name, table)} (docs/evaluation.md lists them); a file "
                f"holds one a line, or a JSON list{hint}"
            )
        found = strings_of_lines(decode_text(path.read_bytes(), name), name, comments=comments)
    elif isinstance(strings, list | tuple) and all(isinstance(s, str) for s in strings):
        found = {f"{name}, entry {number}": s for number, s in enumerate(strings, start=1)}
        if blank := next((place for place, s in found.items() if not s.strip()), None):
            raise ValueError(f"{blank} is blank: remove it, or write the string there")
    else:
        raise ValueError(
            f"{name} is not a JSON list of strings; write the {what} as one, or {name}:NAME where "
            "it holds such a list under each of several names"
        )
    if not found:
        raise ValueError(f"{name} holds no {what}; write one a line, or a JSON list of strings")
    return found


class ImageNetNames(tuple[str, ...]):
    """Names of some of ImageNet's classes, with the WordNet ids of these in `ids`."""

    ids: tuple[str, ...]


def load_class_names(name_or_path: str) -> tuple[str, ...]:
    """Loads class names in label order: of a set by its name, a text file, or a JSON list.

    Of Babel-ImageNet's file (arXiv:2306.08658), `FILE.json:DE`, the names of a language, which are
    ImageNetNames.
    """
    hint = f"; a single class is written `{name_or_path},` in a SPEC"
    known = known_class_names()
    if name_or_path not in known and ":" in name_or_path:
        babel = _names_and_ids(load_json(name_or_path, "class names"), name_or_path)
        if babel is not None:
            return babel
    found = load_strings(name_or_path, known, "class names", comments=False, hint=hint)
    if name_or_path not in known:  # those are as published
        warn_of_twins(found)
    return tuple(found.values())


def _names_and_ids(found: Any, where: str) -> ImageNetNames | None:
    """Reads numbers of ImageNet's classes and their names, a list each; None of another layout."""
    if not (
        isinstance(found, list) and len(found) == 2 and all(isinstance(f, list) for f in found)
    ):
        return None
    numbers, names = found
    ids = load_imagenet_ids()
    are_numbers = all(type(number) is int and 0 <= number < len(ids) for number in numbers)
    are_names = all(isinstance(name, str) and name.strip() for name in names)
    if not (are_numbers and are_names and len(set(numbers)) == len(numbers) == len(names) > 0):
        raise ValueError(
            f"{where} holds {len(numbers)} numbers and {len(names)} names: expected numbers from "
            f"0 to {len(ids) - 1}, each once, and a name for each"
        )
    warn_of_twins({f"{where}, class {n}": s for n, s in zip(numbers, names, strict=True)})
    result = ImageNetNames(names)
    result.ids = tuple(ids[number] for number in numbers)
    return result


def load_real_labels() -> list[list[int]]:
    """Gives the labels of ReaL: those of each validation picture of ImageNet, by its number."""
    return _read_packaged("imagenet_real.json.gz")


def load_objectnet_map() -> dict[str, list[int]]:
    """Gives which classes of ImageNet, by number, a folder of ObjectNet is: 113 of its 313."""
    return _read_packaged("objectnet_map.json")


@functools.cache
def load_imagenet_ids() -> tuple[str, ...]:
    """Gives the WordNet ids of ImageNet's 1,000 classes, in the order of its labels."""
    return tuple(_read_packaged("imagenet_wnids.json"))


def class_ids(names: Sequence[str]) -> tuple[str, ...]:
    """Gives what folders of these classes are called besides: WordNet ids of ImageNet's 1,000, in
    whatever words, and those of a packaged set (`imagenet-a`, `objectnet`); else none."""
    if isinstance(names, ImageNetNames):
        return names.ids
    names, ids = list(names), load_imagenet_ids()
    if len(names) == len(ids):
        return ids
    sets, known = load_sets("class_ids"), load_sets("class_names")
    return next((tuple(own) for name, own in sets.items() if known[name] == names), ())


def warn_of_twins(names: Mapping[str, str]) -> None:
    """Warns of classes of one name: no text tells them apart."""
    places: dict[str, list[str]] = {}
    for place, name in names.items():
        places.setdefault(name, []).append(place)
    twins = {name: found for name, found in places.items() if len(found) > 1}
    if twins:
        name, found = next(iter(twins.items()))
        logging.warning(
            "%d names of classes stand more than once, e.g. %r (%s): zero-shot classification "
            "cannot tell classes of one name apart",
            len(twins),
            name,
            "; ".join(found),
        )
