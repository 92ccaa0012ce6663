"""Several labels of each picture, or class, from a file beside the data: those of ReaL and
ObjectNet, or one's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.classes.matching import labels_of_names, plain_name
from clipjax.data.classes.named_lists import (
    load_json,
    load_objectnet_map,
    load_real_labels,
    load_sets,
)

REAL = "imagenet_real"
OBJECTNET = "objectnet"


def load_label_file(name: str, class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Reads which classes each picture shows.

    Args:
        name: `imagenet_real` (arXiv:2006.07159), or a JSON file: a map from the name of a picture's
            file, without folder and ending, to the list of its classes, by name or number; or a
            list of such lists, for the pictures `ILSVRC2012_val_00000001` and on. A picture with
            an empty list does not count.

    Returns:
        File name without folder and ending -> places among `class_names`.

    Raises:
        ValueError: no such file, or an entry that is no list of known classes.
    """
    found = load_real_labels() if name == REAL else load_json(name, "labels")
    if found is None:
        raise ValueError(
            f"label_file {name!r} is neither {REAL} nor a JSON file; it holds a map from file name "
            "to a list of classes"
        )
    if isinstance(found, list):
        found = {f"ILSVRC2012_val_{number:08}": e for number, e in enumerate(found, start=1)}
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"label_file {name} holds no map from file name to a list of classes")
    known = labels_of_names(class_names)
    labels: dict[str, tuple[int, ...]] = {}
    for picture, classes in found.items():
        stem = stem_of(picture)
        if stem in labels:
            raise ValueError(f"label_file {name} names the picture {stem!r} twice: keep one")
        if not isinstance(classes, list):
            raise ValueError(f"label_file {name}: {picture!r} has {classes!r:.40}, not a list")
        where = f"label_file {name}"
        labels[stem] = tuple(_place(c, known, len(class_names), where, picture) for c in classes)
    return labels


def load_class_map(
    name: str, own: Sequence[str], class_names: Sequence[str]
) -> list[tuple[int, ...]]:
    """Reads which of the classes that are answered each class of a source is.

    Args:
        name: `objectnet` (ObjectNet's 113 folders that are classes of ImageNet), or a JSON file: a
            map from a class of the source to the list of its classes, by name or number.
        own: the source's classes, in the order of its labels; `_`, `-`, space and case do not
            matter.

    Returns:
        Places among `class_names` of each of `own`; none of one that is not in the map.

    Raises:
        ValueError: no such file, an entry that is no list of known classes, or no class in common.
    """
    if name == OBJECTNET:
        found: Any = dict(load_objectnet_map())
        ids, names = (load_sets(kind)[OBJECTNET] for kind in ("class_ids", "class_names"))
        found |= {each: found[folder] for folder, each in zip(ids, names, strict=True)}
    else:
        found = load_json(name, "classes")
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            f"class_map {name!r} is neither {OBJECTNET} nor a JSON file with a map from a class of "
            "the source to a list of the classes that it is"
        )
    known = labels_of_names(class_names)
    places: dict[str, tuple[int, ...]] = {}
    for each, classes in found.items():
        if not isinstance(classes, list) or not classes:
            raise ValueError(
                f"class_map {name}: {each!r} has {classes!r:.40}, not a list of classes"
            )
        read = tuple(_place(c, known, len(class_names), f"class_map {name}", each) for c in classes)
        if places.setdefault(plain_name(each), read) != read:
            raise ValueError(f"class_map {name} names the class {each!r} twice: keep one")
    result = [places.get(plain_name(each), ()) for each in own]
    if not any(result):
        raise ValueError(
            f"class_map {name} has none of the source's {len(own)} classes: it has "
            f"{', '.join(map(repr, list(found)[:3]))}, ..., the source "
            f"{', '.join(map(repr, own[:3]))}, ..."
        )
    return result


def stem_of(key: str) -> str:
    """The name of a picture's file without folder and ending."""
    name = key.rpartition("/")[2]
    return name[: name.rindex(".")] if "." in name else name


def _place(found: Any, known: Mapping[str, int], count: int, where: str, picture: str) -> int:
    place = known.get(found) if isinstance(found, str) else found
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < count:
        raise ValueError(
            f"{where}: {picture!r} has the class {found!r:.40}, which is none of the "
            f"{count} class names, nor a number from 0 to {count - 1}"
        )
    return place
