"""Which of a set's pictures a cue was given for: WinoGAViL."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from absl import logging

from clipjax.array_types import PyTree
from clipjax.data.sources.caption_groups import Association
from clipjax.encoding.batches import put_on_mesh
from clipjax.evals.evaluation import Evaluation
from clipjax.evals.features import embed_images, embed_texts
from clipjax.evals.record_lines import OUTPUT, check_output, write_lines
from clipjax.ranges import Rule

# Numbers of candidates that are averaged together, as published.
_SIZES = {"jaccard_5_6": (5, 6), "jaccard_10_12": (10, 12)}


@dataclasses.dataclass(kw_only=True)
class Winogavil(Evaluation):
    """The Jaccard index of the K pictures nearest to a cue and the K associated (arXiv:2207.12576).

    A cue is asked for as "A cue", or "An" before a vowel, in lower case. Of equal scores those of
    pictures that are not associated are the nearer.

    Attributes:
        output: a file for what was found of each cue, JSON, one object a line.
    """

    output: str | None = None
    batch_size: int = 256
    max_bad: int = 0
    name: str = "winogavil"

    ranges: ClassVar[Mapping[str, Rule]] = {"output": OUTPUT, **Evaluation.ranges}

    def __post_init__(self) -> None:
        super().__post_init__()
        found: Sequence[Association] | None = getattr(self.source, "associations", None)
        if not found:
            raise ValueError(
                f"{self.name}: the source has no associations: give winogavil:FILE.csv"
            )
        self._associations = found
        check_output(self.output, f"{self.name}: output")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        sizes = {len(one.images) for one in self._associations}
        parts = [name for name, of in _SIZES.items() if sizes & {*of}]
        return ("jaccard", *parts, "num_groups", "num_images")

    def run(self, params: PyTree) -> dict[str, float]:
        """Evaluates the model on every association, each counted once.

        Args:
            params: the model's variables; on the mesh, or anywhere else (they are then copied).

        Returns:
            "jaccard" in [0, 1], the mean over all associations, "jaccard_5_6" and "jaccard_10_12"
            over those of so many candidates, where there are, "num_groups" and "num_images".

        Raises:
            ValueError: more than `max_bad` images do not decode, or no association of a mean has
                all of its images.
            FloatingPointError: embeddings that are not finite.
        """
        params = put_on_mesh(params, self.mesh)
        images = embed_images(self, params, self.source)
        texts = embed_texts(self, params, [_prompt(one.cue) for one in self._associations])
        records = list(self._judge(images.embeds, images.good, texts))
        if lost := len(self._associations) - len(records):
            logging.warning(
                "%s: %d of %d associations are left out with their images",
                self.name,
                lost,
                len(self._associations),
            )
        write_lines(self.output, records)
        counts = {"num_groups": float(len(records)), "num_images": float(images.good.sum())}
        return {
            name: counts[name] if name in counts else self._mean(name, records)
            for name in self.metric_names
        }

    def _judge(
        self, images: np.ndarray, good: np.ndarray, texts: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        """Judges the associations whose images all decode."""
        for one, text in zip(self._associations, texts, strict=True):
            places = list(one.images)
            if not good[places].all():
                continue
            scores = images[places] @ text
            right = np.asarray(one.right)
            nearest = np.lexsort((right, -scores))[: right.sum()]
            hits = int(right[nearest].sum())
            jaccard = hits / (2 * len(nearest) - hits)
            record = {"group": one.key, "cue": one.cue, "candidates": len(places)}
            yield record | {"jaccard": jaccard, "scores": scores.tolist()}

    def _mean(self, name: str, records: Sequence[Mapping[str, Any]]) -> float:
        sizes = _SIZES.get(name)
        found = [r["jaccard"] for r in records if sizes is None or r["candidates"] in sizes]
        if not found:
            raise ValueError(f"{self.name}: no association of {name} has all of its images")
        return float(np.mean(found))


def _prompt(cue: str) -> str:
    cue = cue.strip().lower()
    return f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"
