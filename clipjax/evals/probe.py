"""What the probes of image features have in common: two sets with labels, their features, top-k."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from absl import logging

from clipjax.array_types import PyTree
from clipjax.data.classes.numbers import LabelError
from clipjax.data.source import Example
from clipjax.data.sources import make_source
from clipjax.encoding.batches import RowLayout, put_on_mesh
from clipjax.evals.class_tables import tables_of
from clipjax.evals.evaluation import Evaluation, check_classes
from clipjax.evals.feature_cache import cache_path, read_features, write_features
from clipjax.evals.features import Features, embed_images
from clipjax.ranges import Flag, Free, Rule

TOP = 5  # classes that are asked for, the best first
TRAIN = Free("a SPEC, or a dict of one: images with labels")


@dataclasses.dataclass(kw_only=True)
class Probe(Evaluation):
    """Classifies images by the features of other images whose labels it is given.

    Features are the model's image embeddings, of length 1. They are kept in
    `$CLIPJAX_CACHE/features` under the weights, the pixels and the data's fingerprint, where the
    weights are those of a checkpoint.

    Attributes:
        train: SPEC of the images with labels; their classes are found by name.
        cache: whether features are kept, and taken from where they are.
        weights_sha256: names the weights; None for those of a run that trains.
    """

    train: Any
    cache: bool = True
    weights_sha256: str | None = None

    ranges: ClassVar[Mapping[str, Rule]] = {
        "train": TRAIN,
        "cache": Flag(),
        **Evaluation.ranges,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._train_source = self._open("train", self.train)
        for source, what in ((self.source, self.name), (self._train_source, f"{self.name}: train")):
            check_classes(source, what, max_bad=self.max_bad, may_be_empty=True)
        self._names = tuple(self._train_source.class_names or ())
        self._of_source = self._match(self.source, "the set to evaluate on")
        self._tables: dict[str, Any] = {}

    def _open(self, field: str, spec: Any) -> Any:
        source = make_source(spec, path=f"{self.name}: {field}")
        if not source.class_names:
            raise ValueError(f"{self.name}: {field} = {spec!r} has no labels; a probe needs them")
        return source

    def _match(self, source: Any, what: str) -> np.ndarray:
        """Finds each class of a source among those of `train`."""
        names = tuple(source.class_names or ())
        if not names:
            raise ValueError(f"{self.name}: {what} has no labels; a probe needs them")
        if names == self._names:
            return np.arange(len(names))
        places = {name: place for place, name in enumerate(self._names)}
        if len(places) < len(self._names) or len({*names}) < len(names):
            raise ValueError(
                f"{self.name}: two classes of {what}, or of train, have one name, and the classes "
                "of the two differ: give both the same class_names"
            )
        missing = [name for name in names if name not in places]
        if missing:
            raise ValueError(
                f"{self.name}: {len(missing)} of the {len(names)} classes of {what} are none of "
                f"train, e.g. {missing[0]!r}; its classes are {', '.join(self._names[:3])}, ...: "
                "give both the same class_names"
            )
        return np.array([places[name] for name in names])

    def about(self) -> dict[str, Any]:
        """What the numbers depend on, as plain JSON."""
        return {
            "train_fingerprint": self._train_source.fingerprint(),
            "num_classes": len(self._names),
            **self._settings(),
        }

    def tables(self) -> dict[str, Any]:
        """What the last `run` found besides its metrics, as plain JSON."""
        return self._tables

    def _settings(self) -> dict[str, Any]:
        raise NotImplementedError  # each probe has its own

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        return ("top1", "top5", "mean_per_class_recall", "num_examples", "num_train", "num_classes")

    def _features(self, params: PyTree, source: Any, places: np.ndarray) -> Features:
        """Gives the features of the images that decode, with the labels of `train`; a collective.

        From the cache, where it has them.
        """

        def check(example: Example) -> None:
            label = example.get("label")
            if label is None or not 0 <= label < len(places):
                raise LabelError(
                    f"{example['key']} has the label {label}; it has to be one of the "
                    f"{len(places)} classes"
                )

        path = None
        if self.cache and self.weights_sha256:
            path = cache_path(self.weights_sha256, self.preprocess, source.fingerprint())
        found = read_features(path, len(source), self.max_bad) if path else None
        if found is None:
            found = embed_images(self, put_on_mesh(params, self.mesh), source, check=check)
            if path:
                write_features(path, found)
        else:
            logging.info("%s: features of %d images from %s", self.name, len(source), path)
        good = found.good
        return Features(found.embeds[good], places[found.labels[good]].astype(np.int32), good[good])

    def _both(self, params: PyTree) -> tuple[Features, Features]:
        """Gives the features to learn from and those to evaluate on; each class is in the first."""
        learn = self._features(params, self._train_source, np.arange(len(self._names)))
        asked = self._features(params, self.source, self._of_source)
        self._check_classes(learn.labels, asked.labels)
        return learn, asked

    def _check_classes(self, learn: np.ndarray, asked: np.ndarray) -> None:
        lacking = np.setdiff1d(asked, learn)
        if len(lacking):
            named = ", ".join(repr(self._names[label]) for label in lacking[:3])
            raise ValueError(
                f"{self.name}: {len(lacking)} of the classes to evaluate on have no picture to "
                f"learn from: {named}{', ...' if len(lacking) > 3 else ''}; add some to train, or "
                "take these classes out of the set"
            )

    def _metrics(self, top: np.ndarray, learn: Features, asked: Features) -> dict[str, float]:
        """Scores answers `[images, up to TOP]`, class indices, the best first, -1 for none."""
        self._tables = tables_of(self._names, asked.labels, top[:, 0])
        hits = top == asked.labels[:, None]
        first = hits[:, 0]
        recalls = [first[asked.labels == label].mean() for label in np.unique(asked.labels)]
        return {
            "top1": float(first.mean()),
            "top5": float(hits.any(axis=1).mean()),
            "mean_per_class_recall": float(np.mean(recalls)),
            "num_examples": float(len(asked.labels)),
            "num_train": float(len(learn.labels)),
            "num_classes": float(len(self._names)),
        }


def on_devices(mesh: Any, *arrays: np.ndarray) -> tuple[Any, ...]:
    """Lays the rows of host arrays, which all processes hold, over the mesh's batch axes.

    Returns:
        The arrays, padded, and a mask `[rows]`, float32, that is 0 for padding.
    """
    layout = RowLayout(mesh, len(arrays[0]), len(arrays[0]))
    indices = layout.indices(0)
    real = np.minimum(indices, layout.num_rows - 1)
    mask = (indices < layout.num_rows).astype(np.float32)
    return (*(layout.to_device(array[real]) for array in arrays), layout.to_device(mask))
