"""Which of the given class names belongs to which class of a source: by name, by id, by order."""

from collections import Counter
from collections.abc import Sequence

from clipjax.data.labels import labels_of_numbers, numbers_of
from clipjax.data.named_lists import load_imagenet_ids
from clipjax.data.source import DataSource, SampleError

__all__ = ["choose_names", "labels_of_names", "labels_that_occur", "match_classes", "plain_name"]


def match_classes(
    found: Sequence[str], given: Sequence[str], where: str, *, first_label: int | None = None
) -> list[int]:
    """Finds the place of every class of a source in a list of class names.

    First by name: where all classes of the source are in the list, each is its own, whatever the
    order, and the list may hold more. Then by WordNet id: classes that are called by ids of
    ImageNet, all 1,000 or some, in a list of 1,000; classes that are called by whole numbers, as
    `labels_of_numbers`. Only then by order, which needs equally many.

    Args:
        found: the source's own names of its classes, in the order of its labels.
        given: class names.
        where: the source, for messages.
        first_label: the number of the first name, of classes that are called by numbers.

    Returns:
        For every class of the source its place in `given`.

    Raises:
        ValueError: neither fits, or a class could be several of the given ones.
    """
    found, given = list(found), list(given)
    if found == given:
        return list(range(len(given)))
    own, names = [plain_name(name) for name in found], [plain_name(name) for name in given]
    counts = Counter(names)
    if len(set(own)) == len(own) and all(name in counts for name in own):
        twice = [name for name in own if counts[name] > 1]
        if twice:
            raise ValueError(
                f"{where}: class_names holds {twice[0]!r} {counts[twice[0]]} times, and the class "
                "of that name could be either: make the names different"
            )
        places = {name: place for place, name in enumerate(names)}
        return [places[name] for name in own]
    ids = {wnid: place for place, wnid in enumerate(load_imagenet_ids())}
    if len(given) == len(ids) and any(name in ids for name in found):
        unknown = [name for name in found if name not in ids]
        if unknown:
            raise ValueError(
                f"{where}: {len(found) - len(unknown)} of {len(found)} classes are called by "
                f"WordNet ids of ImageNet's 1,000, {len(unknown)} are not, e.g. {unknown[0]!r}: "
                "name them all by ids of the 1,000, or give a list of names of their own"
            )
        return [ids[name] for name in found]
    numbers = numbers_of(found)
    if numbers is not None:
        return labels_of_numbers(numbers, len(given), first_label, where)
    if len(found) == len(given):
        return list(range(len(given)))
    missing = [name for name, plain in zip(found, own, strict=True) if plain not in counts]
    raise ValueError(
        f"{where} has {len(found)} classes, class_names has {len(given)} names: they are matched "
        f"by name where every class is in the list ({len(missing)} are not, e.g. "
        f"{', '.join(map(repr, missing[:3]))}), by WordNet id with ImageNet's 1,000 names, else by "
        "order, and that needs equally many: give a list that fits, or leave class_names out"
    )


def labels_of_names(names: Sequence[str]) -> dict[str, int]:
    """Says which label a cell of a table means, by the rules of `match_classes` for names and ids.

    Args:
        names: of the classes, in the order of the labels.

    Returns:
        Label by name, as it is written and as it is compared; and by WordNet id, of 1,000 names.
        A name that several classes have is none of theirs.
    """
    ids = load_imagenet_ids()
    found: dict[str, int] = {}
    for each in (ids if len(names) == len(ids) else (), map(plain_name, names), names):
        each = list(each)
        counts = Counter(each)
        found |= {name: label for label, name in enumerate(each) if counts[name] == 1}
    return found


def plain_name(name: str) -> str:
    """A name as it is compared: folders are written with `_` for spaces, and in any case."""
    return " ".join(name.replace("_", " ").split()).casefold()


def choose_names(
    given: Sequence[str] | None,
    own: Sequence[str] | None,
    where: str,
    *,
    first_label: int | None = None,
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """Chooses between the names that are given for the labels of a source, and its own.

    Args:
        given: class names; None takes the source's own.
        own: in the order of its labels; None if it has none, and then its labels are places in
            `given`.
        where: the source, for messages.
        first_label: as for `match_classes`.

    Returns:
        The names; and for every label of the source its place among them, None where it is itself.

    Raises:
        ValueError: as `match_classes`.
    """
    names = own if given is None else given
    names = None if names is None else tuple(names)
    if given is None or own is None:
        return names, None
    places = match_classes(own, given, where, first_label=first_label)
    return names, None if places == list(range(len(names))) else tuple(places)


def labels_that_occur(source: DataSource) -> list[int]:
    """Finds the labels of a source's examples, each once, ascending.

    Reads every example, unless the source says its labels by a method `labels`.
    """
    if hasattr(source, "labels"):
        return sorted(set(source.labels()))
    found = set()
    for index in range(len(source)):
        try:
            found.add(source[index].get("label"))
        except SampleError:  # the evaluation counts it
            continue
    return sorted(found - {None})
