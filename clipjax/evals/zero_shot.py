"""Zero-shot classification: which class name's text is nearest to the image (arXiv:2103.00020)."""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.array_types import PyTree
from clipjax.data.classes.matching import choose_names, labels_that_occur
from clipjax.data.classes.named_lists import load_class_names
from clipjax.data.classes.numbers import LabelError, refuse_shifted
from clipjax.data.images.naflex import to_image
from clipjax.data.loading.caption_faults import has_words, tell_wordless
from clipjax.data.sources.subset import Subset
from clipjax.distributed import is_lead
from clipjax.encoding.batches import RowLayout, embed_fn, put_on_mesh, run_batches
from clipjax.encoding.prompts import Prompts, choose_prompts, warn_of_articles
from clipjax.encoding.templates import fill_templates
from clipjax.encoding.zero_shot_head import average_prompts
from clipjax.evals.evaluation import Evaluation
from clipjax.evals.reading import ImageBatch, ImageReader
from clipjax.files import sha256
from clipjax.metrics import count_per_class, mean_per_class_recall, topk_hits
from clipjax.partitioning import replicated
from clipjax.ranges import AnyOf, Choice, Group, Many, Optional, Rule, Text

CLASSES = ("all", "present")
_NUM_NAMED = 3  # names that a Prediction lists


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


@functools.partial(jax.jit, static_argnames="mesh")
def _score(
    counts: dict[str, jax.Array],
    classifier: jax.Array,
    embeds: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    mesh: Mesh,
) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
    """Adds one batch to the counts; returns them and (scores, classes) of the best names."""
    num_classes = classifier.shape[0]
    cosines = jnp.matmul(embeds, classifier.T, precision=jax.lax.Precision.HIGHEST)
    finite = jnp.all(jnp.isfinite(cosines), axis=1)
    hits = topk_hits(cosines, labels, k=1) & mask
    batch = {
        "examples": jnp.sum(mask),
        "nonfinite": jnp.sum(mask & ~finite),
        "top5": jnp.sum(topk_hits(cosines, labels, k=5) & mask),
        "hits_per_class": count_per_class(hits, labels, num_classes),
        "examples_per_class": count_per_class(mask, labels, num_classes),
    }
    scores = cosines
    if scale is not None:
        logits = scale * cosines
        scores = jax.nn.softmax(logits) if bias is None else jax.nn.sigmoid(logits + bias)
    best = jax.lax.top_k(scores, min(_NUM_NAMED, num_classes))
    result = (jax.tree.map(jnp.add, counts, batch), best)
    return jax.lax.with_sharding_constraint(result, replicated(mesh))


@dataclasses.dataclass(kw_only=True)
class ZeroShot(Evaluation):
    """Zero-shot accuracy on a labelled dataset.

    Attributes:
        templates: a name, a file, templates, or prompts of each class, see `load_templates`; None
            takes the dataset's own, else those of the run, else `simple`.
        class_names: a name, a file or names, see `load_class_names` and `match_classes`; by default
            the source's own.
        classes: which names compete: `all`, or only those of classes that are `present` in the
            source.
        logit_scale_fn: params -> factor of the cosines in a prediction's probabilities. Ranks,
            and so accuracies, do not depend on it.
        logit_bias_fn: params -> what is added to them, or None: with a bias each name is a question
            of its own.
        run_prompts: those that the run evaluated with, which trained the model.
    """

    templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None
    class_names: str | Sequence[str] | None = None
    classes: str = "all"
    logit_scale_fn: Callable[[PyTree], jax.Array] | None = None
    logit_bias_fn: Callable[[PyTree], jax.Array | None] | None = None
    run_prompts: Prompts | None = None
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
        **Evaluation.ranges,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.source, "task", None) == "retrieval":
            raise ValueError(
                f"{self.name}: the dataset is for retrieval, as dataset_type.txt says, and holds "
                "no labels: evaluate it by retrieval"
            )
        given, own = self.class_names, getattr(self.source, "class_names", None)
        origin = "the dataset's own" if given is None else "given: a list"
        if isinstance(given, str):
            given, origin = load_class_names(given), f"given: {given!r}"
        names, rows, matched = self._match(given, own)
        if self.classes == "present":
            present = sorted({rows[label] for label in labels_that_occur(self.source)})
            places = {row: place for place, row in enumerate(present)}
            names, rows = [names[row] for row in present], [places.get(row, -1) for row in rows]
        self._prompts = choose_prompts(self.templates, self.source, self.run_prompts)
        self.templates = self._prompts.templates
        self.class_names = self._names = tuple(names)
        self._rows = tuple(rows)  # of the classifier, for each label of the source
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
        return {"templates": self._prompts.about(), "class_names": names}

    def run(self, params: PyTree) -> dict[str, float]:
        """Evaluates the model on every example of the source, each counted once.

        Args:
            params: the model's variables; on the mesh, or anywhere else (they are then copied).

        Returns:
            "top1", "top5", "mean_per_class_recall" in [0, 1], "num_examples" and "num_classes".

        Raises:
            ValueError: more than `max_bad` images do not decode, or a label has no class name.
            FloatingPointError: embeddings that are not finite.
        """
        return self._evaluate(params, keep=False)[0]

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
        self, params: PyTree, *, keep: bool
    ) -> tuple[dict[str, float], tuple[Prediction, ...]]:
        """Returns metrics or, if they are to be kept, the answers to all examples."""
        layout = RowLayout(self.mesh, len(self.source), self.batch_size)
        params = put_on_mesh(params, self.mesh)
        classifier = average_prompts(
            params,
            self._names,
            self._prompts.templates,
            encode_text_fn=self.encode_text_fn,
            tokenizer=self.tokenizer,
            mesh=self.mesh,
            batch_size=self.batch_size,
        )
        scale, bias = (
            None if of_params is None else jax.jit(of_params)(params)
            for of_params in (self.logit_scale_fn, self.logit_bias_fn)
        )
        per_class = dict.fromkeys(("hits_per_class", "examples_per_class"), len(self._names))
        shapes = {"examples": (), "nonfinite": (), "top5": (), **per_class}
        zeros = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
        counts = put_on_mesh(zeros, self.mesh)
        embed = embed_fn(self.encode_image_fn, self.mesh)
        reader = ImageReader(
            self.source,
            self.preprocess,
            max_bad=self.max_bad,
            where=self.name,
            check=self._check_label,
        )
        best = []
        with reader:
            make = reader.batches(layout)
            for embeds, batch in run_batches(embed, params, layout, make):
                labels, mask = layout.to_device(self._labels(batch)), layout.to_device(batch.mask)
                counts, top = _score(
                    counts, classifier, embeds, labels, mask, scale, bias, mesh=self.mesh
                )
                if keep:
                    best.append(top)
        if keep:
            reader.check(0)
            return {}, self._predictions(jax.device_get(best), reader)
        return self._metrics(counts, reader), ()

    def _labels(self, batch: ImageBatch) -> np.ndarray:
        rows = zip(batch.mask, batch.examples, strict=True)
        return np.array([self._rows[e["label"]] if real else 0 for real, e in rows], np.int32)

    def _check_label(self, example: Mapping[str, Any]) -> None:
        label, count, key = example.get("label"), len(self._rows), example["key"]
        refuse_shifted(label, count, getattr(self.source, "numbered_from", None), key)
        if label is None or not 0 <= label < count:
            raise LabelError(
                f"{key} has the label {label}; it has to be an index of the {count} class names, "
                f"0 to {count - 1}"
            )

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        return ("top1", "top5", "mean_per_class_recall", "num_examples", "num_classes")

    def _metrics(self, counts: dict[str, jax.Array], reader: ImageReader) -> dict[str, float]:
        recall = jax.jit(mean_per_class_recall)(
            counts["hits_per_class"], counts["examples_per_class"]
        )
        counts, recall = jax.device_get((counts, recall))
        examples = int(counts["examples"])
        assert examples <= len(self.source), "an example was counted twice"
        # Counted on the devices over all processes, so that all of them come to one verdict.
        reader.check(len(self.source) - examples)
        if not examples:
            raise ValueError(f"{self.name}: none of the {len(self.source)} images decodes")
        if counts["nonfinite"]:
            raise FloatingPointError(
                f"{self.name}: the scores of {int(counts['nonfinite'])} of {examples} images are "
                "not finite; look for NaN or infinite parameters in the checkpoint"
            )
        return {
            "top1": float(counts["hits_per_class"].sum() / examples),
            "top5": float(counts["top5"] / examples),
            "mean_per_class_recall": float(recall),
            "num_examples": float(examples),
            "num_classes": float(len(self._names)),
        }

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
            row = self._rows[example["label"]]
            predictions.append(
                Prediction(
                    key=example["key"],
                    image=to_image(pixels),
                    label=self._names[row],
                    names=tuple(self._names[c] for c in places[index]),
                    scores=tuple(float(score) for score in scores[index]),
                    correct=bool(places[index][0] == row),
                )
            )
        return tuple(predictions)
