"""Several labels of each picture, from a file beside the data: ReaL's of ImageNet, or one's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.classes.matching import labels_of_names
from clipjax.data.classes.named_lists import load_json, load_real_labels

REAL = "imagenet_real"


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
        labels[stem] = tuple(_place(c, known, len(class_names), name, picture) for c in classes)
    return labels


def stem_of(key: str) -> str:
    """The name of a picture's file without folder and ending."""
    name = key.rpartition("/")[2]
    return name[: name.rindex(".")] if "." in name else name


def _place(found: Any, known: Mapping[str, int], count: int, name: str, picture: str) -> int:
    place = known.get(found) if isinstance(found, str) else found
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < count:
        raise ValueError(
            f"label_file {name}: {picture!r} has the class {found!r:.40}, which is none of the "
            f"{count} class names, nor a number from 0 to {count - 1}"
        )
    return place
