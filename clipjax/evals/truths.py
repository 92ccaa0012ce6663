"""Which class names compete in zero-shot, and which of them each example of a source is."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from clipjax.data.classes.matching import (
    choose_names,
    labels_of,
    labels_that_occur,
    listed_classes,
)
from clipjax.data.classes.named_lists import load_class_names
from clipjax.data.classes.numbers import LabelError, refuse_shifted
from clipjax.data.source import keys_of
from clipjax.data.sources.subset import Subset
from clipjax.encoding.reading import ImageBatch
from clipjax.evals.label_files import load_class_map, load_label_file, stem_of
from clipjax.files import sha256


class Truths:
    """The names that compete, and the right ones of each example.

    Args:
        source: of labelled pictures.
        class_names, classes, label_file, class_map: see `ZeroShot`.
        name: of the evaluation, for messages.

    Attributes:
        source: the examples that count.
        rows: `[examples]`, which of the given source they are.
        names: that compete.
        several: whether an example may be several of them.
        mean_ap: whether the source itself says several a picture.

    Raises:
        ValueError: they do not fit the source.
    """

    def __init__(
        self,
        source: Any,
        class_names: str | Sequence[str] | None,
        *,
        classes: str,
        label_file: str | None,
        class_map: str | None,
        name: str,
    ) -> None:
        self.source, self.name, self.classes = source, name, classes
        self.rows = np.arange(len(source))
        self.label_file, self.class_map = label_file, class_map
        given, own = class_names, getattr(self.source, "class_names", None)
        origin = "the dataset's own" if given is None else "given: a list"
        if isinstance(given, str):
            given, origin = load_class_names(given), f"given: {given!r}"
        self._left_out: dict[str, int] = {}
        self._map: list[tuple[int, ...]] | None = None
        if self.class_map is not None:
            names, rows, matched = self._mapped(given, own)
        elif self.classes == "listed":
            names, rows, matched = self._listed(given, own)
        else:
            names, rows, matched = self._match(given, own)
        if self.classes == "present":
            present = sorted({rows[label] for label in labels_that_occur(self.source)})
            places = {row: place for place, row in enumerate(present)}
            names, rows = [names[row] for row in present], [places.get(row, -1) for row in rows]
        self.names = tuple(names)
        self._rows = tuple(rows)  # of the classifier, for each label of the source
        self._label_file = self._labels_of_file() if label_file else None
        own_several = bool(getattr(source, "several", None))
        self.mean_ap = own_several and not self._label_file
        self.several = own_several or bool(self._label_file) or self._map is not None
        self._numbered_from = getattr(source, "numbered_from", None)
        self._names_from, self._matched = origin, matched

    def about(self) -> dict[str, Any]:
        """What the labels come from, as plain JSON."""
        text = json.dumps(self.names, ensure_ascii=False)
        about: dict[str, Any] = {
            "class_names": {
                "from": self._names_from,
                "count": len(self.names),
                "sha256": sha256(text),
                "classes": self.classes,
                "matched": self._matched,  # one of matching.MATCHED; None: the source's own
            }
        }
        if self._label_file is not None:
            labels = json.dumps(self._label_file, sort_keys=True)
            about["label_file"] = {"from": self.label_file, "sha256": sha256(labels)}
        if self._map is not None:
            about["class_map"] = {"from": self.class_map, "sha256": sha256(json.dumps(self._map))}
        return about | ({"left_out": dict(self._left_out)} if self._left_out else {})

    def of(self, example: Mapping[str, Any]) -> tuple[int, ...]:
        """The classes of an example, as places among the names."""
        if self._label_file is not None:
            return self._label_file[stem_of(example["key"])]
        if self._map is not None:
            return self._map[example["label"]]
        if self.several:
            return tuple(self._rows[label] for label in example["labels"])
        return (self._rows[example["label"]],)

    def of_batch(self, batch: ImageBatch) -> np.ndarray:
        """Those of a batch: `[batch]`, int32, or if there may be several `[batch, names]`, bool."""
        truths = [
            self.of(e) if real else () for real, e in zip(batch.mask, batch.examples, strict=True)
        ]
        if not self.several:
            return np.array([truth[0] if truth else 0 for truth in truths], np.int32)
        labels = np.zeros((len(truths), len(self.names)), bool)
        for row, truth in enumerate(truths):
            labels[row, list(truth)] = True
        return labels

    def check(self, example: Mapping[str, Any]) -> None:
        """Raises LabelError if an example has no label that is among the names."""
        if self._label_file is not None:
            return
        labels = example.get("labels") if self.mean_ap else (example.get("label"),)
        if labels is None:
            raise LabelError(
                f"{example['key']} has no labels, and the source says several a picture"
            )
        for label in labels:
            self._check_one(label, example["key"])

    def _check_one(self, label: int | None, key: str) -> None:
        count = len(self._rows)
        refuse_shifted(label, count, self._numbered_from, key)
        if label is None or not 0 <= label < count:
            raise LabelError(
                f"{key} has the label {label}; it has to be an index of the {count} class names, "
                f"0 to {count - 1}"
            )

    def _match(
        self, given: Sequence[str] | None, own: Sequence[str] | None
    ) -> tuple[Sequence[str], Sequence[int], str | None]:
        """Gives the names, the place among them of each label of the source, and what told it."""
        first_label = getattr(self.source, "first_label", None)
        names, places, matched = choose_names(given, own, self.name, first_label=first_label)
        if not names:
            raise ValueError(
                f"{self.name}: the source has no class names and none are given: give them in the "
                "order of the labels, by class_names= or by "
                "?class_names=FILE in the SPEC"
            )
        if given is None:
            matched = getattr(self.source, "matched", None)
        return names, range(len(names)) if places is None else places, matched

    def _listed(
        self, given: Sequence[str] | None, own: Sequence[str] | None
    ) -> tuple[Sequence[str], Sequence[int], str | None]:
        """As `_match`, and leaves out the examples of other classes."""
        if given is None or own is None:
            raise ValueError(
                f"{self.name}: classes=listed is for a source with classes of its own and a list "
                "of class_names: give that list"
            )
        places, by = listed_classes(own, given, self.name)
        labels = labels_of(self.source)
        kept = [i for i, label in enumerate(labels) if label is None or places[label] >= 0]
        self._keep(kept, "of a class that is not listed")
        return given, places, by

    def _mapped(
        self, given: Sequence[str] | None, own: Sequence[str] | None
    ) -> tuple[Sequence[str], Sequence[int], str | None]:
        """As `_match`, of classes that are one or several of the names, or none and left out."""
        assert self.class_map is not None
        if given is None or own is None:
            raise ValueError(
                f"{self.name}: class_map is for a source with classes of its own and a list of "
                "class_names: give that list, as class_names='imagenet'"
            )
        if self.classes != "all" or self.label_file or getattr(self.source, "several", None):
            raise ValueError(
                f"{self.name}: class_map says itself which classes count, of pictures with one "
                "class each: leave out `classes` and `label_file`, and take no multilabel source"
            )
        self._map = load_class_map(self.class_map, own, given)
        places = self._map
        labels = labels_of(self.source)
        kept = [i for i, label in enumerate(labels) if label is None or places[label]]
        self._keep(kept, "of a class that class_map does not have")
        return given, range(len(own)), "name"

    def _labels_of_file(self) -> dict[str, tuple[int, ...]]:
        """Reads the label file, and leaves out the examples that have no label in it."""
        assert self.label_file is not None
        labels = load_label_file(self.label_file, self.names)
        stems = [stem_of(key) for key in keys_of(self.source)]
        missing = [stem for stem in stems if stem not in labels]
        if missing:
            raise ValueError(
                f"{self.name}: {len(missing)} of {len(stems)} pictures are not in label_file "
                f"{self.label_file}, e.g. {missing[0]!r}: it has to name every one"
            )
        stem, count = Counter(stems).most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"{self.name}: {count} pictures are called {stem!r}, and label_file "
                f"{self.label_file} goes by the names of files: rename all but one"
            )
        self._keep([i for i, stem in enumerate(stems) if labels[stem]], "without a label")
        return labels

    def _keep(self, kept: Sequence[int], reason: str) -> None:
        left_out = len(self.source) - len(kept)
        if not kept:
            raise ValueError(f"{self.name}: all {left_out} pictures are {reason}")
        if left_out:
            logging.info(
                "%s: %d of %d pictures count; %d are %s",
                self.name,
                len(kept),
                len(self.source),
                left_out,
                reason,
            )
            self.source = Subset(self.source, np.asarray(kept), reason)
            self.rows = self.rows[np.asarray(kept)]
            self._left_out[reason] = left_out
