"""Zero-shot classification: which class name's text is nearest to the image (arXiv:2103.00020)."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from clipjax.array_types import PyTree
from clipjax.data.images.naflex import to_image
from clipjax.data.loading.caption_faults import has_words, tell_wordless
from clipjax.data.sources.subset import Subset
from clipjax.encoding.batches import RowLayout, put_on_mesh, run_batches
from clipjax.encoding.compiled import embed_fn
from clipjax.encoding.encode_fns import compute_dtype
from clipjax.encoding.prompts import Prompts, choose_prompts, warn_of_articles
from clipjax.encoding.reading import ImageReader
from clipjax.encoding.templates import fill_templates
from clipjax.encoding.zero_shot_head import average_prompts
from clipjax.evals.evaluation import Evaluation, check_classes
from clipjax.evals.examples import confused_rows
from clipjax.evals.groups import Groups
from clipjax.evals.head_cache import cached_head, head_path
from clipjax.evals.retrieval import gather_rows
from clipjax.evals.truths import Truths
from clipjax.evals.zero_shot_scores import empty_counts, mean_ap, metric_names, metrics_of, score
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
        self._truths = Truths(
            self.source,
            self.class_names,
            classes=self.classes,
            label_file=self.label_file,
            class_map=self.class_map,
            name=self.name,
        )
        self.class_names = self._names = self._truths.names
        self.source = self._truths.source
        self._prompts = choose_prompts(self.templates, self.source, self.run_prompts)
        self.templates = self._prompts.templates
        self._columns = tuple(getattr(self.source, "group_names", None) or ())
        self._tables: dict[str, Any] = {}
        if self.ignored_groups and not self._columns:
            raise ValueError(
                f"{self.name}: ignored_groups={list(self.ignored_groups)} is of no use for a "
                "source without groups: name their columns by ?group_field=NAME in the SPEC"
            )
        fill_templates(self.templates, self._names)  # has prompts for each, before the work
        warn_of_articles(self._names, self._prompts)
        if is_lead():
            wordless = sum(not has_words(name) for name in self._names)
            tell_wordless(wordless, len(self._names), f"class names of {self.name}")

    def about(self) -> dict[str, Any]:
        """What the numbers depend on, as plain JSON."""
        return {"templates": self._prompts.about(), **self._truths.about()}

    def tables(self) -> dict[str, Any]:
        """What the last `run` found besides its metrics, as plain JSON: see `metrics_of`.

        With `keeps_examples`, and one label a picture, `confused` too: see `confused_rows`.
        """
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
        several, has_scale = self._truths.several, scale is not None
        zeros = empty_counts(len(self._names), several=several, has_scale=has_scale)
        counts = put_on_mesh(zeros, self.mesh)
        groups = Groups(self._columns, self.ignored_groups)
        embed = embed_fn(self.encode_image_fn, self.mesh)
        reader = ImageReader(
            self.source,
            self.preprocess,
            max_bad=self.max_bad,
            where=self.name,
            check=self._check,
        )
        best, ranked, answered = [], [], []
        with reader:
            make = reader.batches(layout)
            for embeds, batch in run_batches(embed, params, layout, make):
                labels = layout.to_device(self._truths.of_batch(batch))
                mask = layout.to_device(batch.mask)
                counts, top, hits, cosines = score(
                    counts, classifier, embeds, labels, mask, scale, bias, mesh=self.mesh
                )
                if keep:
                    best.append(top)
                    continue
                groups.add(batch.examples, batch.mask, hits)
                if noted is not None:
                    noted.append((hits, mask))
                if self._truths.mean_ap:
                    ranked.append((cosines, labels, mask))
                if self.keeps_examples and not several:
                    best.append(top)
                    answered.append((labels, mask))
        if keep:
            reader.check(0)
            return {}, self._predictions(jax.device_get(best), reader)
        metrics = self._metrics(counts, reader)
        if ranked:
            metrics |= self._rank(ranked)
        if answered:
            self._tables["confused"] = self._confused(best, answered)
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
        dtype = compute_dtype(self.encode_text_fn)
        path = head_path(self.weights_sha256, self._names, templates, self.tokenizer, dtype)
        return put_on_mesh(cached_head(path, len(self._names), make), self.mesh)

    def _rank(self, ranked: Sequence[tuple[jax.Array, ...]]) -> dict[str, float]:
        """The mean average precision; every process gets all scores."""
        whole = [jax.device_get(gather_rows(list(part), mesh=self.mesh)) for part in ranked]
        scores, targets, mask = (np.concatenate(part) for part in zip(*whole, strict=True))
        found, self._tables["per_class"] = mean_ap(scores[mask], targets[mask], self._names)
        return {"mean_ap": found}

    def _confused(
        self, best: Sequence[tuple[jax.Array, jax.Array]], answered: Sequence[tuple[jax.Array, ...]]
    ) -> list[dict[str, Any]]:
        """The rows of `confused_rows`; every process gets all answers."""
        whole = [
            jax.device_get(gather_rows(list(part), mesh=self.mesh))
            for part in zip(*answered, strict=True)
        ]
        labels, mask = (np.concatenate(part)[: len(self.source)] for part in whole)
        scores, answers = (
            np.concatenate([each[:, 0] for each in part])[: len(self.source)]
            for part in zip(*jax.device_get(list(best)), strict=True)
        )
        real = mask.astype(bool)
        return confused_rows(self._truths.rows[real], labels[real], answers[real], scores[real])

    def _check(self, example: Mapping[str, Any]) -> None:
        Groups(self._columns, ()).check(example)
        self._truths.check(example)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        names = metric_names(
            several=self._truths.several,
            has_scale=self.logit_scale_fn is not None,
            mean_ap=self._truths.mean_ap,
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
            truth = self._truths.of(example)
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
