"""A linear classifier on image features: of all training images, or of a few of each class."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging

from clipjax.array_types import PyTree
from clipjax.evals import logistic
from clipjax.evals.features import Features
from clipjax.evals.probe import TOP, TRAIN, Probe, on_devices
from clipjax.evals.retrieval import gather_rows
from clipjax.partitioning import place, replicated
from clipjax.ranges import Many, Number, Optional, Rule, whole

_STRENGTH = Optional(Number(0, open_low=True), "chosen on a validation split")
_SEED = whole(0)
_MOST_VALIDATION_SHOTS = 4


class _Fitting:
    """Fits classifiers on some features; each fit starts from the one with the nearest strength."""

    def __init__(self, probe: Probe, learn: Features, num_classes: int):
        self._probe, self._num_classes = probe, num_classes
        self._rows = on_devices(probe.mesh, learn.embeds, learn.labels)
        self._fits: dict[float, logistic.Weights] = {}
        self.tried: dict[float, float] = {}  # strength -> accuracy on the validation images
        self._zeros = logistic.zeros(learn.embeds.shape[1], num_classes, probe.mesh)

    def fit(self, strength: float) -> logistic.Weights:
        """Fits by a strength of the penalty."""
        near = min(self._fits, key=lambda s: abs(np.log(s / strength)), default=None)
        start = self._zeros if near is None else self._fits[near]
        on_mesh = place(np.array(strength, np.float32), replicated(self._probe.mesh))
        found = logistic.fit(*self._rows, on_mesh, start)
        loss, iterations = jax.device_get((found.loss, found.iterations))
        told = f"{self._probe.name}: lambda {strength:.3g}: loss {loss:.6g}"
        logging.info("%s in %d iterations", told, iterations)
        if not np.isfinite(loss):
            raise FloatingPointError(f"{told} is not finite")
        self._fits[strength] = found.weights
        return found.weights

    def top(self, weights: logistic.Weights, features: Features) -> np.ndarray:
        """Gives the best classes of images, `[images, up to TOP]`."""
        (rows, _) = on_devices(self._probe.mesh, features.embeds)
        found = logistic.best_classes(weights, rows, k=min(TOP, self._num_classes))
        (found,) = gather_rows([found], mesh=self._probe.mesh)
        return np.asarray(jax.device_get(found))[: len(features.labels)]

    def sweep(self, validation: Features) -> float:
        """Chooses the strength by the accuracy on other images."""

        def accuracy(strength: float) -> float:
            top = self.top(self.fit(strength), validation)
            self.tried[strength] = float((top[:, 0] == validation.labels).mean())
            return self.tried[strength]

        return logistic.sweep(accuracy)


def _take(features: Features, rows: np.ndarray) -> Features:
    return Features(*(part[rows] for part in features))


def draw_per_class(labels: np.ndarray, count: Any, rng: np.random.Generator) -> np.ndarray:
    """Draws `count(examples of the class)` rows of each class that occurs; the rows, ascending."""
    drawn = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        drawn.append(rows[: count(len(rows))])
    return np.sort(np.concatenate(drawn))


@dataclasses.dataclass(kw_only=True)
class LinearProbe(Probe):
    """Multinomial logistic regression on image features, by L-BFGS on the devices.

    The strength lambda of the L2 penalty (scikit-learn's 1 / C) is the one with the best accuracy
    on a validation split, see `logistic.sweep`; then train and validation together are learned.

    Attributes:
        validation: SPEC of the images that lambda is chosen by; by default a part of `train`.
        validation_share: that part, of each class; a class with one image lends none.
        strength: lambda, which is then not chosen.
        seed: of the part.

    Reference: arXiv:2103.00020, section 3.2 and appendix A.3; features here are the embeddings,
    normalised.
    """

    validation: Any = None
    validation_share: float = 0.2
    strength: float | None = None
    seed: int = 0
    batch_size: int = 256
    max_bad: int = 0
    name: str = "linear_probe"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "validation": Optional(TRAIN, "a part of train"),
        "validation_share": Number(0, 1, open_low=True, open_high=True),
        "strength": _STRENGTH,
        "seed": _SEED,
        **Probe.ranges,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._validation: Any = None
        if self.validation is not None:
            if self.strength is not None:
                raise ValueError(
                    f"{self.name}: strength and validation are given: leave one out, as validation "
                    "images choose the strength"
                )
            self._validation = self._open("validation", self.validation)
            self._of_validation = self._match(self._validation, "validation")

    def _settings(self) -> dict[str, Any]:
        split: dict[str, Any] = {"share": self.validation_share, "seed": self.seed}
        if self._validation is not None:
            split = {"fingerprint": self._validation.fingerprint()}
        return {"strength": self.strength, "validation": split if self.strength is None else None}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        return (*super().metric_names, "strength")

    def run(self, params: PyTree) -> dict[str, float]:
        """Learns a classifier and evaluates it on every image, each counted once.

        Returns:
            "top1", "top5", "mean_per_class_recall" in [0, 1], "num_examples", "num_train",
            "num_classes" and the "strength" that was taken, lambda.

        Raises:
            ValueError: more than `max_bad` images of a set do not decode, a label without a class,
                or a class without a picture to learn from.
            FloatingPointError: embeddings, or a loss, that are not finite.
        """
        learn, asked = self._both(params)
        strength, tried = self.strength, dict[float, float]()
        if strength is None:
            part, held = self._split(params, learn)
            choosing = _Fitting(self, part, len(self._names))
            strength, tried = choosing.sweep(held), choosing.tried
            if self._validation is not None:
                learn = Features(*(np.concatenate(p) for p in zip(part, held, strict=True)))
        fitting = _Fitting(self, learn, len(self._names))
        top = fitting.top(fitting.fit(strength), asked)
        metrics = {**self._metrics(top, learn, asked), "strength": float(strength)}
        if tried:
            sweep = [{"strength": float(s), "accuracy": a} for s, a in sorted(tried.items())]
            self._tables["sweep"] = sweep
        return metrics

    def _split(self, params: PyTree, learn: Features) -> tuple[Features, Features]:
        """Gives the images to learn from and those to choose lambda by."""
        if self._validation is not None:
            held = self._features(params, self._validation, self._of_validation)
            self._check_classes(learn.labels, held.labels)
            return learn, held
        rng = np.random.default_rng(self.seed)

        def count(of_class: int) -> int:
            return min(max(round(self.validation_share * of_class), 1), of_class - 1)

        rows = draw_per_class(learn.labels, count, rng)
        if not len(rows):
            raise ValueError(
                f"{self.name}: no class of train has two pictures, so none can be held out to "
                "choose lambda by: give validation, or strength"
            )
        return _take(learn, np.setdiff1d(np.arange(len(learn.labels)), rows)), _take(learn, rows)


@dataclasses.dataclass(kw_only=True)
class FewShot(Probe):
    """A linear probe on a few images of each class, drawn several times.

    Without `strength`, each draw chooses its own on min(shots, 4) further images of each class,
    which are then not learned.

    Attributes:
        shots: images of each class.
        draws: of each number of shots; means and deviations are over these.
        seed: of the draws; equal seeds and data give equal draws.
        strength: lambda, see `LinearProbe`.

    Reference: arXiv:2103.00020, section 3.1.5.
    """

    shots: Sequence[int] = (1, 2, 4, 8, 16)
    draws: int = 3
    seed: int = 0
    strength: float | None = None
    batch_size: int = 256
    max_bad: int = 0
    name: str = "few_shot"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "shots": Many(whole(), "whole numbers from 1", at_least=1),
        "draws": whole(),
        "seed": _SEED,
        "strength": _STRENGTH,
        **Probe.ranges,
    }

    def _settings(self) -> dict[str, Any]:
        settings = ("shots", "draws", "seed", "strength")
        return {n: v if n != "shots" else list(v) for n in settings for v in [getattr(self, n)]}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        ends = ("", "_deviation") if self.draws > 1 else ("",)
        tops = tuple(f"top1_{shots}_shot{end}" for shots in self.shots for end in ends)
        return (*tops, "num_examples", "num_train", "num_classes")

    def run(self, params: PyTree) -> dict[str, float]:
        """Learns classifiers from a few images and evaluates each on every image.

        Returns:
            "top1_N_shot" in [0, 1], the mean over the draws, "top1_N_shot_deviation", their sample
            deviation, and "num_examples", "num_train" (to draw from), "num_classes".

        Raises:
            ValueError: as `LinearProbe.run`, or a class with too few pictures to draw from.
            FloatingPointError: embeddings, or a loss, that are not finite.
        """
        learn, asked = self._both(params)
        for shots in self.shots:
            self._check_count(learn, shots)
        metrics: dict[str, float] = {}
        for shots in self.shots:
            found = [self._top1(learn, asked, shots, draw) for draw in range(self.draws)]
            metrics[f"top1_{shots}_shot"] = float(np.mean(found))
            if self.draws > 1:
                metrics[f"top1_{shots}_shot_deviation"] = float(np.std(found, ddof=1))
        return metrics | {
            "num_examples": float(len(asked.labels)),
            "num_train": float(len(learn.labels)),
            "num_classes": float(len(self._names)),
        }

    def _num_validation(self, shots: int) -> int:
        return 0 if self.strength is not None else min(shots, _MOST_VALIDATION_SHOTS)

    def _check_count(self, learn: Features, shots: int) -> None:
        labels, counts = np.unique(learn.labels, return_counts=True)
        needed = shots + self._num_validation(shots)
        if counts.min() < needed:
            name, least = self._names[labels[counts.argmin()]], counts.min()
            beside = f" and {needed - shots} to choose lambda by" if needed > shots else ""
            raise ValueError(
                f"{self.name}: the class {name!r} has {least} pictures to learn from, and "
                f"{shots} shots need {shots}{beside}: leave out that number of shots, or add "
                "pictures to train"
            )

    def _top1(self, learn: Features, asked: Features, shots: int, draw: int) -> float:
        rng = np.random.default_rng([self.seed, shots, draw])
        rows = draw_per_class(learn.labels, lambda of_class: shots, rng)
        fitting = _Fitting(self, _take(learn, rows), len(self._names))
        strength = self.strength
        if strength is None:
            others = np.setdiff1d(np.arange(len(learn.labels)), rows)
            rest = _take(learn, others)
            held = draw_per_class(rest.labels, lambda of_class: self._num_validation(shots), rng)
            strength = fitting.sweep(_take(rest, held))
        top = fitting.top(fitting.fit(strength), asked)
        return float((top[:, 0] == asked.labels).mean())
