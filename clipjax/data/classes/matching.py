"""Which of the given class names belongs to which class of a source: by name, by id, by order."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clipjax.data.classes.named_lists import class_ids
from clipjax.data.classes.numbers import labels_of_numbers, numbers_of
from clipjax.data.source import DataSource, SampleError

MATCHED = ("name", "wordnet", "number", "order")


class Match(NamedTuple):
    """Where the classes of a source stand in a list of names, and what told it."""

    places: list[int]
    by: str


def match_classes(
    found: Sequence[str], given: Sequence[str], where: str, *, first_label: int | None = None
) -> Match:
    """Finds the place of every class of a source in a list of class names.

    First by name: where all classes of the source are in the list, each is its own, whatever the
    order, and the list may hold more. Then by WordNet id: classes that are called by ids of
    ImageNet, all 1,000 or some, in a list of 1,000; classes that are called by whole numbers, as
    `labels_of_numbers`. Only then by order, which needs equally many, and that those which are in
    the list stand there at their own place.

    Args:
        found: the source's own names of its classes, in the order of its labels.
        first_label: the number of the first name, of classes that are called by numbers.

    Raises:
        ValueError: neither fits, or a class could be several of the given ones.
    """
    ids = {name: place for place, name in enumerate(class_ids(given))}
    found, given = list(found), list(given)
    places = _places_by_name(found, given, where)
    if places is not None:
        return Match(places, "name")
    if any(name in ids for name in found):
        unknown = [name for name in found if name not in ids]
        if unknown:
            raise ValueError(
                f"{where}: {len(found) - len(unknown)} of {len(found)} classes are called by ids "
                f"(WordNet's, as ImageNet's folders are) of the {len(ids)} class names, "
                f"{len(unknown)} are not, e.g. {unknown[0]!r}: name them all by ids of these, give "
                "a list of names of their own, or leave their pictures out by classes='listed'"
            )
        return Match([ids[name] for name in found], "wordnet")
    numbers = numbers_of(found)
    if numbers is not None:
        return Match(labels_of_numbers(numbers, len(given), first_label, where), "number")
    _refuse_order(found, given, where)
    return Match(list(range(len(given))), "order")


def _places_by_name(found: list[str], given: list[str], where: str) -> list[int] | None:
    """Finds all classes by their names, as they are written or as they are compared; None if not
    all are in the list."""
    if found == given:
        return list(range(len(given)))
    for own, names in ((found, given), (_plain(found), _plain(given))):
        counts = Counter(names)
        if len(set(own)) < len(own) or not all(name in counts for name in own):
            continue
        twice = [name for name in own if counts[name] > 1]
        if twice:
            raise ValueError(
                f"{where}: class_names holds {twice[0]!r} {counts[twice[0]]} times, and the class "
                "of that name could be either: make the names different"
            )
        places = {name: place for place, name in enumerate(names)}
        return [places[name] for name in own]
    return None


def _refuse_order(found: list[str], given: list[str], where: str) -> None:
    """Refuses what does not match by order: another number, or known names at other places."""
    own, names = _plain(found), _plain(given)
    missing = [name for name, plain in zip(found, own, strict=True) if plain not in set(names)]
    rule = (
        f"they are matched by name where every class is in the list ({len(missing)} are not, e.g. "
        f"{', '.join(map(repr, missing[:3]))}), by WordNet id with ImageNet's 1,000 names, else by "
        "order, and that needs equally many"
    )
    if len(found) != len(given):
        raise ValueError(
            f"{where} has {len(found)} classes, class_names has {len(given)} names: {rule}: give a "
            "list that fits, or leave class_names out"
        )
    elsewhere = [
        place for place, name in enumerate(own) if name in set(names) and names[place] != name
    ]
    if elsewhere:
        place = elsewhere[0]
        other = given[names.index(own[place])]
        raise ValueError(
            f"{where} has the class {found[place]!r} at place {place}, where class_names has "
            f"{given[place]!r}, and it has {other!r} at place {names.index(own[place])}: {rule}, "
            "with each name that both have at one place: write the names of all classes as the "
            "source calls them, or the list in the order of its classes: "
            f"{', '.join(map(repr, found[:5]))}{', ...' if len(found) > 5 else ''}"
        )


def labels_of_names(names: Sequence[str]) -> dict[str, int]:
    """Says which label a cell of a table means, by the rules of `match_classes` for names and ids.

    Returns:
        Label by name, as it is written and as it is compared; and by id, see `class_ids`.
        A name that several classes have is none of theirs.
    """
    found: dict[str, int] = {}
    for each in (class_ids(names), map(plain_name, names), names):
        each = list(each)
        counts = Counter(each)
        found |= {name: label for label, name in enumerate(each) if counts[name] == 1}
    return found


def plain_name(name: str) -> str:
    """A name as it is compared: folders are written with `_` or `-` for spaces, in any case."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()


def _plain(names: Iterable[str]) -> list[str]:
    return [plain_name(name) for name in names]


def choose_names(
    given: Sequence[str] | None,
    own: Sequence[str] | None,
    where: str,
    *,
    first_label: int | None = None,
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None, str | None]:
    """Chooses between the names that are given for the labels of a source, and its own.

    Args:
        own: in the order of its labels; None if it has none, and then its labels are places in
            `given`.

    Returns:
        The names; for every label of the source its place among them, None where it is itself; and
        what told it, one of MATCHED, None where the names are the source's own, or there are none.
    """
    names = own if given is None else given
    names = None if names is None else tuple(names)
    if given is None or names is None or own is None:
        return names, None, None if given is None else "number"
    places, by = match_classes(own, given, where, first_label=first_label)
    return names, None if places == list(range(len(names))) else tuple(places), by


def listed_classes(found: Sequence[str], given: Sequence[str], where: str) -> Match:
    """Finds the classes of a source that are in a list of class names; -1 for those that are not.

    Args:
        found: the source's own names, as for `match_classes`.
    """
    ids, names = class_ids(given), _plain(given)
    for own, known, by in ((list(found), ids, "wordnet"), (_plain(found), names, "name")):
        places = {name: place for place, name in enumerate(known) if known.count(name) == 1}
        if any(name in places for name in own):
            return Match([places.get(name, -1) for name in own], by)
    raise ValueError(
        f"{where}: none of its {len(found)} classes is among the {len(given)} class names, neither "
        f"by name nor by id: it has {', '.join(map(repr, found[:3]))}, ..., the list "
        f"{', '.join(map(repr, given[:3]))}, ..."
    )


def labels_of(source: DataSource) -> list[int | None]:
    """Gives the labels of a source's examples in order; None of one that cannot be read.

    Reads every example, unless the source says its labels by a method `labels`.
    """
    if hasattr(source, "labels"):
        return list(source.labels())
    found: list[int | None] = []
    for index in range(len(source)):
        try:
            found.append(source[index].get("label"))
        except SampleError:  # the evaluation counts it
            found.append(None)
    return found


def labels_that_occur(source: DataSource) -> list[int]:
    """Finds the labels of a source's examples, each once, ascending."""
    return sorted({label for label in labels_of(source) if label is not None})
