"""Which examples of a dataset are held out: by a hash, of each class its share."""

import hashlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from clipjax.data.captions import flatten
from clipjax.data.classes.matching import labels_of
from clipjax.data.source import DataSource, SampleError, keys_of, pictures_of
from clipjax.ranges import FieldError, Number

_FRACTION = Number(0, 1, open_low=True, open_high=True)


class Split(NamedTuple):
    """A division of a source in two.

    Attributes:
        held: bool `[examples]`, which are held out.
        labels: int64 `[examples]`, of a source with classes; -1 of an example without one.
        units: how many things were decided one by one: pictures, or groups of them.
        unusable: examples whose caption could not be read, by reason; they go by their pictures.
    """

    held: np.ndarray
    labels: np.ndarray
    units: int
    unusable: Counter[str]


def split(
    source: DataSource, holdout: float, *, captions: bool = False, stratify: bool = False
) -> Split:
    """Divides a source by a hash of each picture's name: its key, or what the source says of it.

    A picture is held out if its hash is among the lowest `holdout` of all hashes there are, so its
    side depends on nothing else: not on order, machine, seed or the other examples. With
    `stratify` it is if its hash is among the lowest of its class, so that the side depends on the
    others of the class, too. A larger `holdout` holds out the smaller one's.

    Args:
        holdout: the fraction, above 0 and below 1.
        captions: whether examples of equal captions, but for case and white space, go together,
            too, by the hash of the caption. An example of several captions joins their groups,
            which go by the lowest of their hashes.
        stratify: whether of each class of two and more the fraction is held out, to the nearest
            whole number, at least one and not all; those that are alone in theirs, or without a
            label, are divided together. Of a source without classes it changes nothing. What goes
            together is of the class of the lowest number in it.

    Raises:
        ValueError: a fraction that is none, or all examples would be on one side.
    """
    _FRACTION.check(holdout, "holdout")
    names = []
    pictures: list[Any] = pictures_of(source) if hasattr(source, "pictures") else [()] * len(source)
    for key, picture in zip(keys_of(source), pictures, strict=True):
        known = isinstance(picture, tuple) and picture[:1] == ("known",)
        names.append(_hash("picture", picture[1]) if known else _hash("key", key))
    unusable: Counter[str] = Counter()
    hashes = np.array(names, np.uint64)
    if captions:
        hashes = _by_caption(source, hashes, unusable)
    labels = _labels(source)
    if stratify and (labels >= 0).any():
        held = _lowest_of_each(labels, hashes, holdout)
    else:
        held = hashes < np.uint64(int(holdout * 2.0**64))
    if held.all() or not held.any():
        raise FieldError(
            f"holdout = {holdout}: {'all' if held.all() else 'none'} of {len(held):,} examples in "
            f"{len(np.unique(hashes)):,} groups would be held out; take another fraction"
        )
    return Split(held, labels, len(np.unique(hashes)), unusable)


def count_classes(labels: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts by label how many examples are held out, and how many there are; `[labels]` each."""
    size = int(labels.max(initial=-1)) + 1
    known = labels >= 0
    parts, sizes = (np.bincount(labels[part], minlength=size) for part in (known & held, known))
    return parts, sizes


def _labels(source: DataSource) -> np.ndarray:
    labels = labels_of(source) if source.class_names else [None] * len(source)
    return np.array([-1 if label is None else label for label in labels], np.int64)


def _lowest_of_each(labels: np.ndarray, hashes: np.ndarray, holdout: float) -> np.ndarray:
    units, unit_of = np.unique(hashes, return_inverse=True)  # by their hashes, ascending
    classes = np.full(len(units), np.iinfo(np.int64).max)
    np.minimum.at(classes, unit_of, labels)
    _, class_of, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    class_of[(sizes[class_of] == 1) | (classes < 0)] = -1
    held = np.zeros(len(units), bool)
    for number in np.unique(class_of):
        members = np.flatnonzero(class_of == number)
        share = round(holdout * len(members))
        if number >= 0:
            share = min(max(share, 1), len(members) - 1)
        held[members[:share]] = True
    return held[unit_of]


def _hash(*identity: object) -> int:
    digest = hashlib.sha256(repr(("clipjax.split/1", *identity)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _by_caption(source: DataSource, names: np.ndarray, unusable: Counter[str]) -> np.ndarray:
    """The lowest hash of a caption in each group that equal captions or pictures connect."""
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    rows: list[int] = []
    found: list[int] = []
    for index in range(len(source)):
        try:
            texts = [
                " ".join(text.split()).casefold() for _, text in flatten(source[index]["text"])
            ]
        except SampleError as error:
            unusable[error.reason] += 1
            continue
        rows += [index] * len(texts)
        found += [_hash("caption", text) for text in texts]
    captions, caption_of = np.unique(np.array(found, np.uint64), return_inverse=True)
    _, picture_of = np.unique(names, return_inverse=True)
    # Of pictures and captions, connected by the rows that have both.
    first = picture_of.max() + 1
    edges = picture_of[rows], first + caption_of
    size = first + len(captions)
    graph = coo_array((np.ones(len(rows), bool), edges), (size, size))
    group = connected_components(graph, directed=False)[1]
    lowest = np.full(group.max() + 1, np.iinfo(np.uint64).max)
    np.minimum.at(lowest, group[first:], captions)
    alone = np.setdiff1d(group[:first], group[first:])  # pictures without a caption
    lowest_of_rows = lowest[group[picture_of]]
    return np.where(np.isin(group[picture_of], alone), names, lowest_of_rows)
