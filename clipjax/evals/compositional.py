"""Which of a group's captions belongs to which of its images: SugarCrepe, Winoground, ARO."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from absl import logging

from clipjax.array_types import PyTree
from clipjax.data.sources.caption_groups import CaptionGroup
from clipjax.encoding.batches import put_on_mesh
from clipjax.evals.evaluation import Evaluation
from clipjax.evals.features import embed_images, embed_texts
from clipjax.evals.record_lines import OUTPUT, check_output, write_lines
from clipjax.ranges import Many, Rule, Text


@dataclasses.dataclass(kw_only=True)
class Compositional(Evaluation):
    """The text, image and group score of groups of images and captions (arXiv:2204.03162).

    With s(i, c) the cosine of image i and caption c of a group, and caption i the one of image i:
    text score: s(i, i) > s(i, c) for each image i and every other caption c; image score: s(c, c) >
    s(i, c) for each image's caption c and every other image i; group score: both. Equal scores are
    wrong, so a model that gives everything one embedding has 0. Where a group has one image, as in
    SugarCrepe and ARO, its text score is the accuracy and there is no other.

    Attributes:
        leave_out: categories that do not count in the mean over categories.
        output: a file for what was found of each group, JSON, one object a line.
    """

    leave_out: Sequence[str] = ()
    output: str | None = None
    batch_size: int = 256
    max_bad: int = 0
    name: str = "compositional"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "leave_out": Many(Text(may_be_empty=False), "categories"),
        "output": OUTPUT,
        **Evaluation.ranges,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        groups: Sequence[CaptionGroup] | None = getattr(self.source, "groups", None)
        if not groups:
            raise ValueError(
                f"{self.name}: the source has no groups of captions: give sugarcrepe:FILE.json, "
                "winoground:examples.jsonl or aro:FILE.json"
            )
        self._groups = groups
        self._several = any(len(group.images) > 1 for group in groups)
        counts: dict[str, int] = defaultdict(int)
        for group in groups:
            counts[group.category] += 1
        if unknown := {*self.leave_out} - {*counts}:
            raise ValueError(
                f"{self.name}: leave_out names {', '.join(sorted(unknown))}, which are no "
                f"categories of the source; it has {', '.join(sorted(filter(None, counts)))}"
            )
        smallest = getattr(self.source, "smallest_category", 1)
        self._categories = [
            category
            for category, count in sorted(counts.items())
            if category and count >= smallest and category not in self.leave_out
        ]
        check_output(self.output, f"{self.name}: output")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        scores = ("text_score", "image_score", "group_score") if self._several else ("text_score",)
        means = [f"{score}_category_mean" for score in scores if len(self._categories) > 1]
        return (*scores, *means, "num_groups", "num_images", "num_texts")

    def run(self, params: PyTree) -> dict[str, float]:
        """Evaluates the model on every group, each counted once.

        Args:
            params: the model's variables; on the mesh, or anywhere else (they are then copied).

        Returns:
            "text_score", "image_score" and "group_score" in [0, 1], the mean of each over the
            categories, each weighing the same, and "num_groups", "num_images", "num_texts".

        Raises:
            ValueError: more than `max_bad` images do not decode.
            FloatingPointError: embeddings that are not finite.
        """
        params = put_on_mesh(params, self.mesh)
        images = embed_images(self, params, self.source)
        captions = [caption for group in self._groups for caption in group.captions]
        texts = embed_texts(self, params, captions)
        records = list(self._judge(images.embeds, images.good, texts))
        if not records:
            raise ValueError(f"{self.name}: no group has all of its images")
        write_lines(self.output, records)
        if len(records) < len(self._groups):
            logging.warning(
                "%s: %d of %d groups are left out with their images",
                self.name,
                len(self._groups) - len(records),
                len(self._groups),
            )
        counts = {
            "num_groups": len(records),
            "num_images": images.good.sum(),
            "num_texts": sum(len(record["scores"][0]) for record in records),
        }
        return {
            name: float(counts[name]) if name in counts else self._mean(name, records)
            for name in self.metric_names
        }

    def _judge(
        self, images: np.ndarray, good: np.ndarray, texts: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        """Judges the groups whose images all decode."""
        first = 0
        for group in self._groups:
            of_group = texts[first : first + len(group.captions)]
            first += len(group.captions)
            places = list(group.images)
            if not good[places].all():
                continue
            scores = images[places] @ of_group.T
            right = np.diagonal(scores)
            others = np.where(np.eye(*scores.shape) > 0, -np.inf, scores)
            text = bool((right > others.max(axis=1)).all())
            record: dict[str, Any] = {"group": group.key, "category": group.category}
            record["text_score"] = text
            if self._several:
                image = bool((right > others[:, : len(places)].max(axis=0)).all())
                record |= {"image_score": image, "group_score": text and image}
            yield record | {"scores": scores.tolist()}

    def _mean(self, name: str, records: Sequence[Mapping[str, Any]]) -> float:
        score = name.removesuffix("_category_mean")
        if score == name:
            return float(np.mean([record[score] for record in records]))
        found = {c: [r[score] for r in records if r["category"] == c] for c in self._categories}
        return float(np.mean([np.mean(values) for values in found.values() if values]))
