"""Zero-shot classification: which class name's text is nearest to the image (arXiv:2103.00020)."""

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from absl import logging

from clipjax.array_types import PyTree
from clipjax.data.classes.matching import (
    choose_names,
    labels_of,
    labels_that_occur,
    listed_classes,
)
from clipjax.data.classes.named_lists import load_class_names
from clipjax.data.classes.numbers import LabelError, refuse_shifted
from clipjax.data.images.naflex import to_image
from clipjax.data.loading.caption_faults import has_words, tell_wordless
from clipjax.data.source import keys_of
from clipjax.data.sources.subset import Subset
from clipjax.encoding.batches import RowLayout, embed_fn, put_on_mesh, run_batches
from clipjax.encoding.prompts import Prompts, choose_prompts, warn_of_articles
from clipjax.encoding.reading import ImageBatch, ImageReader
from clipjax.encoding.templates import fill_templates
from clipjax.encoding.zero_shot_head import average_prompts
from clipjax.evals.evaluation import Evaluation, check_classes
from clipjax.evals.groups import Groups
from clipjax.evals.head_cache import cached_head, head_path
from clipjax.evals.label_files import load_class_map, load_label_file, stem_of
from clipjax.evals.retrieval import gather_rows
from clipjax.evals.zero_shot_scores import empty_counts, mean_ap, metric_names, metrics_of, score
from clipjax.files import sha256
from clipjax.processes.distributed import is_lead
from clipjax.ranges import AnyOf, Choice, Group, Many, Optional, Rule, Text

CLASSES = ("all", "present", "listed")


class Prediction(NamedTuple):
    """What the model says of one image.

    Attributes:
        image: `[size, size, 3]`, uint8, as the model saw it.
        names: class names, best first.
        scores: of these names; probabilities if the eval knows the logit scale, as `classify` of
            the encoder gives them, else cosines.
        correct: whether the first name is that of the label's class.
    """

    key: str
    image: np.ndarray
    label: str
    names: tuple[str, ...]
    scores: tuple[float, ...]
    correct: bool


@dataclasses.dataclass(kw_only=True)
class ZeroShot(Evaluation):
    """Zero-shot accuracy on a labelled dataset.

    Attributes:
        templates: a name, a file, templates, or prompts of each class, see `load_templates`; None
            takes the dataset's own, else those of the run, else `simple`.
        class_names: a name, a file or names, see `load_class_names` and `match_classes`; by default
            the source's own.
        classes: which names compete: `all`, or only those of classes that are `present` in the
            source; with `listed` all do, and only examples count whose class is in `class_names`.
        label_file: several labels of each picture, see `load_label_file`, in place of the source's.
        class_map: which of `class_names` each class of the source is, see `load_class_map`; an
            answer is right if it is one of them, and pictures of other classes are left out.
        ignored_groups: `column=group` of what the source groups its examples by, that the worst
            group is not one of.
        logit_scale_fn: params -> factor of the cosines in a prediction's probabilities. Ranks,
            and so accuracies, do not depend on it.
        logit_bias_fn: params -> what is added to them, or None: with a bias each name is a question
            of its own.
        run_prompts: those that the run evaluated with, which trained the model.
        weights_sha256: of the model's files, which do not change: its classifiers are kept on disk.
    """

    templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None
    class_names: str | Sequence[str] | None = None
    classes: str = "all"
    label_file: str | None = None
    class_map: str | None = None
    ignored_groups: Sequence[str] = ()
    logit_scale_fn: Callable[[PyTree], jax.Array] | None = None
    logit_bias_fn: Callable[[PyTree], jax.Array | None] | None = None
    run_prompts: Prompts | None = None
    weights_sha256: str | None = None
    batch_size: int = 256
    max_bad: int = 0
    name: str = "zero_shot"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "templates": Optional(
            AnyOf((Text("a name or a file"), Many(Text(), "texts"), Group("class -> its prompts"))),
            "the dataset's, else `simple`",
        ),
        "class_names": Optional(
            AnyOf((Text("a name or a file"), Many(Text(), "texts"))), "the source's"
        ),
        "classes": Choice(CLASSES),
        "label_file": Optional(Text("imagenet_real, or a file"), "the source's labels"),
        "class_map": Optional(Text("objectnet, or a file"), "a class is itself"),
        "ignored_groups": Many(Text("column=group"), "texts"),
        **Evaluation.ranges,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.source, "task", None) == "retrieval":
            raise ValueError(
                f"{self.name}: the dataset is for retrieval, as dataset_type.txt says, and holds "
                "no labels: evaluate it by retrieval"
            )
        check_classes(
            self.source, self.name, max_bad=self.max_bad, may_be_empty=self.classes != "all"
        )
        given, own = self.class_names, getattr(self.source, "class_names", None)
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
        self._prompts = choose_prompts(self.templates, self.source, self.run_prompts)
        self.templates = self._prompts.templates
        self.class_names = self._names = tuple(names)
        self._rows = tuple(rows)  # of the classifier, for each label of the source
        self._label_file = self._labels_of_file() if self.label_file else None
        own_several = bool(getattr(self.source, "several", None))
        self._mean_ap = own_several and not self._label_file
        self._several = own_several or bool(self._label_file) or self._map is not None
        self._columns = tuple(getattr(self.source, "group_names", None) or ())
        self._tables: dict[str, Any] = {}
        if self.ignored_groups and not self._columns:
            raise ValueError(
                f"{self.name}: ignored_groups={list(self.ignored_groups)} is of no use for a "
                "source without groups: name their columns by ?group_field=NAME in the SPEC"
            )
        self._names_from, self._matched = origin, matched
        fill_templates(self.templates, self._names)  # has prompts for each, before the work
        warn_of_articles(self._names, self._prompts)
        if is_lead():
            wordless = sum(not has_words(name) for name in self._names)
            tell_wordless(wordless, len(self._names), f"class names of {self.name}")

    def _match(
        self, given: Sequence[str] | None, own: Sequence[str] | None
    ) -> tuple[Sequence[str], Sequence[int], str | None]:
        """Gives the names, the place among them of each label of the source, and what told it."""
        first_label = getattr(self.source, "first_label", None)
        names, places, matched = choose_names(given, own, self.name, first_label=first_label)
        if not names:
            raise ValueError(
                f"{self.name}: the source has no class names and none are given: give them in the "
                "order of the labels, by --class_names (in a config, class_names) or by "
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
                "class_names: give that list, as by --class_names imagenet"
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
        labels = load_label_file(self.label_file, self._names)
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
            self._left_out[reason] = left_out

    def about(self) -> dict[str, Any]:
        """What the numbers depend on, as plain JSON."""
        text = json.dumps(self._names, ensure_ascii=False)
        names = {
            "from": self._names_from,
            "count": len(self._names),
            "sha256": sha256(text),
            "classes": self.classes,
            "matched": self._matched,  # one of matching.MATCHED; None: the source's own
        }
        about = {"templates": self._prompts.about(), "class_names": names}
        if self._label_file is not None:
            labels = json.dumps(self._label_file, sort_keys=True)
            about["label_file"] = {"from": self.label_file, "sha256": sha256(labels)}
        if self._map is not None:
            about["class_map"] = {"from": self.class_map, "sha256": sha256(json.dumps(self._map))}
        return about | ({"left_out": dict(self._left_out)} if self._left_out else {})

    def tables(self) -> dict[str, Any]:
        """What the last `run` found besides its metrics, as plain JSON: see `metrics_of`."""
        return self._tables

    def run(self, params: PyTree) -> dict[str, float]:
        """Evaluates the model on every example of the source, each counted once.

        Args:
            params: the model's variables; on the mesh, or anywhere else (they are then copied).

        Returns:
            Those of `metric_names`; shares in [0, 1].

        Raises:
            ValueError: more than `max_bad` images do not decode, or a label has no class name.
            FloatingPointError: embeddings that are not finite.
        """
        return self._evaluate(params, keep=False)[0]

    def run_with_hits(self, params: PyTree) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
        """As `run`, and says of each example of the source whether its first answer is right.

        Returns:
            The metrics; `[examples]`, bool; `[examples]`, bool: whether the image decodes.
        """
        noted: list[tuple[jax.Array, jax.Array]] = []
        metrics = self._evaluate(params, keep=False, noted=noted)[0]
        whole = [jax.device_get(gather_rows(list(part), mesh=self.mesh)) for part in noted]
        hits, mask = (np.concatenate(part)[: len(self.source)] for part in zip(*whole, strict=True))
        return metrics, hits[:, 0].astype(bool), mask.astype(bool)

    def predict(self, params: PyTree, num_predictions: int = 48) -> tuple[Prediction, ...]:
        """Answers for evenly spaced examples; reads and encodes only these.

        A collective, as `run` is: every process of a run calls it and gets the same answers.

        Returns:
            Predictions in the source's order; images that do not decode are not among them.
        """
        num = min(num_predictions, len(self.source))
        spaced = np.unique(np.linspace(0, len(self.source) - 1, num).astype(int))
        asked = copy.copy(self)  # names and prompts stay as they were chosen
        asked.source, asked.max_bad = Subset(self.source, spaced, "predictions"), num
        return asked._evaluate(params, keep=True)[1]

    def _evaluate(
        self,
        params: PyTree,
        *,
        keep: bool,
        noted: list[tuple[jax.Array, jax.Array]] | None = None,
    ) -> tuple[dict[str, float], tuple[Prediction, ...]]:
        """Returns metrics or, if they are to be kept, the answers to all examples."""
        layout = RowLayout(self.mesh, len(self.source), self.batch_size)
        params = put_on_mesh(params, self.mesh)
        classifier = self._classifier(params)
        scale, bias = (
            None if of_params is None else jax.jit(of_params)(params)
            for of_params in (self.logit_scale_fn, self.logit_bias_fn)
        )
        zeros = empty_counts(len(self._names), several=self._several, has_scale=scale is not None)
        counts = put_on_mesh(zeros, self.mesh)
        groups = Groups(self._columns, self.ignored_groups)
        embed = embed_fn(self.encode_image_fn, self.mesh)
        reader = ImageReader(
            self.source,
            self.preprocess,
            max_bad=self.max_bad,
            where=self.name,
            check=self._check_label,
        )
        best, ranked = [], []
        with reader:
            make = reader.batches(layout)
            for embeds, batch in run_batches(embed, params, layout, make):
                labels, mask = layout.to_device(self._labels(batch)), layout.to_device(batch.mask)
                counts, top, hits, cosines = score(
                    counts, classifier, embeds, labels, mask, scale, bias, mesh=self.mesh
                )
                if keep:
                    best.append(top)
                    continue
                groups.add(batch.examples, batch.mask, hits)
                if noted is not None:
                    noted.append((hits, mask))
                if self._mean_ap:
                    ranked.append((cosines, labels, mask))
        if keep:
            reader.check(0)
            return {}, self._predictions(jax.device_get(best), reader)
        metrics = self._metrics(counts, reader)
        if ranked:
            metrics |= self._rank(ranked)
        if self._columns:
            found, self._tables["groups"] = groups.metrics(layout)
            metrics |= found
        return {name: metrics[name] for name in self.metric_names}, ()

    def _classifier(self, params: PyTree) -> PyTree:
        def make() -> jax.Array:
            return average_prompts(
                params,
                self._names,
                self._prompts.templates,
                encode_text_fn=self.encode_text_fn,
                tokenizer=self.tokenizer,
                mesh=self.mesh,
                batch_size=self.batch_size,
            )

        templates = self._prompts.templates
        path = head_path(self.weights_sha256, self._names, templates, self.tokenizer)
        return put_on_mesh(cached_head(path, len(self._names), make), self.mesh)

    def _rank(self, ranked: Sequence[tuple[jax.Array, ...]]) -> dict[str, float]:
        """The mean average precision; every process gets all scores."""
        whole = [jax.device_get(gather_rows(list(part), mesh=self.mesh)) for part in ranked]
        scores, targets, mask = (np.concatenate(part) for part in zip(*whole, strict=True))
        found, self._tables["per_class"] = mean_ap(scores[mask], targets[mask], self._names)
        return {"mean_ap": found}

    def _truth(self, example: Mapping[str, Any]) -> tuple[int, ...]:
        """The classes of an example, as places among the names."""
        if self._label_file is not None:
            return self._label_file[stem_of(example["key"])]
        if self._map is not None:
            return self._map[example["label"]]
        if self._several:
            return tuple(self._rows[label] for label in example["labels"])
        return (self._rows[example["label"]],)

    def _labels(self, batch: ImageBatch) -> np.ndarray:
        truths = [
            self._truth(e) if real else ()
            for real, e in zip(batch.mask, batch.examples, strict=True)
        ]
        if not self._several:
            return np.array([truth[0] if truth else 0 for truth in truths], np.int32)
        labels = np.zeros((len(truths), len(self._names)), bool)
        for row, truth in enumerate(truths):
            labels[row, list(truth)] = True
        return labels

    def _check_label(self, example: Mapping[str, Any]) -> None:
        Groups(self._columns, ()).check(example)
        if self._label_file is not None:
            return
        labels = example.get("labels") if self._mean_ap else (example.get("label"),)
        if labels is None:
            raise LabelError(
                f"{example['key']} has no labels, and the source says several a picture"
            )
        for label in labels:
            self._check_one(label, example["key"])

    def _check_one(self, label: int | None, key: str) -> None:
        count = len(self._rows)
        refuse_shifted(label, count, getattr(self.source, "numbered_from", None), key)
        if label is None or not 0 <= label < count:
            raise LabelError(
                f"{key} has the label {label}; it has to be an index of the {count} class names, "
                f"0 to {count - 1}"
            )

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        names = metric_names(
            several=self._several,
            has_scale=self.logit_scale_fn is not None,
            mean_ap=self._mean_ap,
        )
        worst = [f"worst_{c}_{metric}" for c in self._columns for metric in ("top1", "top5")]
        return (*names[:-2], *worst, *names[-2:])

    def _metrics(self, counts: dict[str, jax.Array], reader: ImageReader) -> dict[str, float]:
        examples, nonfinite = jax.device_get((counts["examples"], counts["nonfinite"]))
        assert examples <= len(self.source), "an example was counted twice"
        # Counted on the devices over all processes, so that all of them come to one verdict.
        reader.check(len(self.source) - int(examples))
        if not examples:
            raise ValueError(f"{self.name}: none of the {len(self.source)} images decodes")
        if nonfinite:
            raise FloatingPointError(
                f"{self.name}: the scores of {int(nonfinite)} of {examples} images are "
                "not finite; look for NaN or infinite parameters in the checkpoint"
            )
        metrics, self._tables = metrics_of(counts, self._names)
        return metrics

    def _predictions(
        self, best: list[tuple[np.ndarray, np.ndarray]], reader: ImageReader
    ) -> tuple[Prediction, ...]:
        predictions = []
        scores, places = (np.concatenate(parts) for parts in zip(*best, strict=True))
        for index in range(len(self.source)):
            # Read again rather than kept: another process may have read it the first time.
            example, pixels = reader.read_one(index)
            if pixels is None:
                continue
            truth = self._truth(example)
            predictions.append(
                Prediction(
                    key=example["key"],
                    image=to_image(pixels),
                    label=", ".join(self._names[c] for c in truth),
                    names=tuple(self._names[c] for c in places[index]),
                    scores=tuple(float(score) for score in scores[index]),
                    correct=int(places[index][0]) in truth,
                )
            )
        return tuple(predictions)
