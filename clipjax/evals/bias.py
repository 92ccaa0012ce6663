"""How a model's answers depend on a group: accuracy, scores, and what the group's word changes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging

from clipjax.array_types import PyTree
from clipjax.data.classes.numbers import LabelError
from clipjax.data.source import Example
from clipjax.encoding.batches import put_on_mesh
from clipjax.encoding.templates import fill_templates
from clipjax.encoding.zero_shot_head import average_prompts
from clipjax.evals.evaluation import Evaluation, check_classes
from clipjax.evals.features import embed_images
from clipjax.evals.record_lines import OUTPUT, check_output, write_lines
from clipjax.processes.distributed import gather
from clipjax.ranges import Group, Many, Rule, Text

_GROUP = "{group}"


@dataclasses.dataclass(kw_only=True)
class Bias(Evaluation):
    """Zero-shot classification with the group's word in the prompts, by group, the worst first.

    Of each group: the accuracy with its own word in the prompts; the score, the mean cosine of its
    pictures and the prompts of their right classes; the flips, the share of answers that change
    when the word of another group stands in the prompts instead, the mean over the other words.

    Attributes:
        prompts: templates; each holds `{group}`, and `{}` for the class.
        words: group -> what stands for it in a prompt; by default the group as the source says it.
        output: a file for the groups, the least accurate first, JSON, one object a line.
    """

    prompts: Sequence[str] = ("a photo of a {group} {}.",)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    output: str | None = None
    batch_size: int = 256
    max_bad: int = 0
    name: str = "bias"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "prompts": Many(Text("with {group} and {}"), "texts", at_least=1),
        "words": Group("group -> its word"),
        "output": OUTPUT,
        **Evaluation.ranges,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = tuple(getattr(self.source, "group_names", None) or ())
        if len(columns) != 1 or not self.source.class_names:
            raise ValueError(
                f"{self.name}: the source has {len(columns)} columns of groups and "
                f"{len(self.source.class_names or ())} classes; expected one column and a label: "
                "csv:FILE?label_field=NAME&group_field=NAME"
            )
        check_classes(self.source, self.name, max_bad=self.max_bad)
        (self._column,), self._classes = columns, tuple(self.source.class_names)
        lacking = [template for template in self.prompts if _GROUP not in template]
        if lacking:
            raise ValueError(f"{self.name}: the prompt {lacking[0]!r} does not hold {_GROUP}")
        fill_templates(self._prompts_of("group"), self._classes)  # has its `{}`, before the work
        check_output(self.output, f"{self.name}: output")
        self._table: list[dict[str, Any]] = []

    def _prompts_of(self, group: str) -> tuple[str, ...]:
        word = self.words.get(group, group)
        return tuple(template.replace(_GROUP, word) for template in self.prompts)

    def about(self) -> dict[str, Any]:
        """What the numbers depend on, as plain JSON."""
        return {"prompts": list(self.prompts), "words": dict(self.words), "group": self._column}

    def tables(self) -> dict[str, Any]:
        """The groups as `run` found them, the least accurate first."""
        return {"bias": self._table}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        gaps = ("accuracy", "worst_group_accuracy", "accuracy_gap", "score_gap")
        return (*gaps, "flips", "worst_group_flips", "num_examples", "num_groups")

    def run(self, params: PyTree) -> dict[str, float]:
        """Evaluates the model on every picture, each counted once.

        Returns:
            "accuracy" over all, "worst_group_accuracy", the differences between the groups of the
            highest and the lowest, "accuracy_gap" and "score_gap"; "flips", the mean over pictures,
            and "worst_group_flips"; "num_examples", "num_groups".

        Raises:
            ValueError: more than `max_bad` images do not decode, a picture without a label or a
                group, fewer than two groups, or a word for a group that is not there.
            FloatingPointError: embeddings that are not finite.
        """
        params = put_on_mesh(params, self.mesh)
        mine: dict[str, str] = {}

        def see(index: int, example: Example) -> None:
            mine[str(index)] = self._check(example)

        images = embed_images(self, params, self.source, check=self._check, see=see)
        told: dict[str, str] = {}
        for theirs in gather(mine):
            told |= theirs
        rows = np.flatnonzero(images.good)
        found = np.array([told[str(row)] for row in rows])
        groups = sorted({*told.values()})
        self._check_groups(groups)
        answers, scores = self._answer(params, groups, images.embeds[rows], images.labels[rows])
        records = [
            self._judge(groups, place, found == group, answers, scores, images.labels[rows])
            for place, group in enumerate(groups)
        ]
        self._table = sorted(records, key=lambda r: (r["accuracy"], -r["flips"], r["group"]))
        write_lines(self.output, self._table)
        for record in self._table:
            logging.info("%s: %s", self.name, record)
        accuracy, score, flips, count = (
            np.array([r[name] for r in records])
            for name in ("accuracy", "score", "flips", "num_examples")
        )
        return {
            "accuracy": float((accuracy * count).sum() / count.sum()),
            "worst_group_accuracy": float(accuracy.min()),
            "accuracy_gap": float(accuracy.max() - accuracy.min()),
            "score_gap": float(score.max() - score.min()),
            "flips": float((flips * count).sum() / count.sum()),
            "worst_group_flips": float(flips.max()),
            "num_examples": float(len(rows)),
            "num_groups": float(len(groups)),
        }

    def _check(self, example: Example) -> str:
        """Gives the group of a picture that has one and a label."""
        label, group = example.get("label"), (example.get("groups") or {}).get(self._column)
        if label is None or not 0 <= label < len(self._classes) or not group:
            raise LabelError(
                f"{example['key']} has the label {label} and the group {group!r}; it needs one of "
                f"the {len(self._classes)} classes, and a group"
            )
        return group

    def _check_groups(self, groups: Sequence[str]) -> None:
        if len(groups) < 2:
            raise ValueError(
                f"{self.name}: all pictures are of the group {groups[0]!r}; expected 2"
            )
        if unknown := sorted({*self.words} - {*groups}):
            raise ValueError(
                f"{self.name}: words has {unknown[0]!r}, and the groups are {', '.join(groups)}"
            )

    def _answer(
        self, params: PyTree, groups: Sequence[str], images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gives the answers and the scores of the right classes by word, `[groups, images]`."""
        answers, scores = [], []
        for group in groups:
            head = average_prompts(
                params,
                self._classes,
                self._prompts_of(group),
                encode_text_fn=self.encode_text_fn,
                tokenizer=self.tokenizer,
                mesh=self.mesh,
                batch_size=self.batch_size,
            )
            cosines = images @ np.asarray(jax.device_get(head)).T
            answers.append(cosines.argmax(axis=1))
            scores.append(cosines[np.arange(len(labels)), labels])
        return np.stack(answers), np.stack(scores)

    def _judge(
        self,
        groups: Sequence[str],
        place: int,
        members: np.ndarray,
        answers: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
    ) -> dict[str, Any]:
        own = answers[place, members]
        flips = {
            other: float((answers[number, members] != own).mean())
            for number, other in enumerate(groups)
            if number != place
        }
        return {
            "group": groups[place],
            "num_examples": int(members.sum()),
            "accuracy": float((own == labels[members]).mean()),
            "score": float(scores[place, members].mean()),
            "flips": float(np.mean(list(flips.values()))),
            "flips_by_word": dict(sorted(flips.items(), key=lambda each: -each[1])),
        }
