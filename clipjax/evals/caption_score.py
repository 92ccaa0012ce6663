"""CLIPScore and RefCLIPScore: how well captions fit pictures (arXiv:2104.08718)."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from clipjax.array_types import PyTree
from clipjax.data.classes.numbers import LabelError
from clipjax.data.source import Example
from clipjax.data.storage.files import read_given
from clipjax.data.storage.text_files import decode_text
from clipjax.encoding.batches import put_on_mesh
from clipjax.evals.evaluation import Evaluation
from clipjax.evals.features import embed_images, embed_texts
from clipjax.evals.record_lines import OUTPUT, check_output, write_lines
from clipjax.files import sha256
from clipjax.processes.distributed import gather
from clipjax.ranges import Optional, Rule, Text
from clipjax.strict_json import parse_fields

WEIGHT = 2.5
PREFIX = "A photo depicts "


@dataclasses.dataclass(kw_only=True)
class CaptionScore(Evaluation):
    """CLIPScore of a caption for each picture, and RefCLIPScore by the picture's own captions.

    CLIPScore(c, v) = 2.5 max(cos(c, v), 0); RefCLIPScore is the harmonic mean of it and of
    max(max over references r of cos(c, r), 0), 0 where both are. "A photo depicts " stands before
    every caption and reference.

    Attributes:
        candidates: JSON file: name of a picture (its key, or that without folders and suffix) ->
            the caption to score; then the captions of the source are the references. Without it
            the first caption of each picture is scored, without references.
        output: a file for the scores of each picture, JSON, one object a line.
    """

    candidates: str | None = None
    output: str | None = None
    batch_size: int = 256
    max_bad: int = 0
    name: str = "caption_score"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "candidates": Optional(Text("a JSON file", may_be_empty=False), "the source's captions"),
        "output": OUTPUT,
        **Evaluation.ranges,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._candidates = self._read(self.candidates) if self.candidates else None
        check_output(self.output, f"{self.name}: output")

    def _read(self, where: str) -> dict[str, str]:
        try:
            found = parse_fields(decode_text(read_given(where), where))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.name}: candidates: {where}: {error}") from error
        if not isinstance(found, dict) or not all(
            isinstance(text, str) and text.strip() for text in found.values()
        ):
            raise ValueError(
                f"{self.name}: candidates: {where} has to hold an object of JSON: name of a "
                "picture -> its caption, a text that is not empty"
            )
        return found

    def about(self) -> dict[str, Any]:
        """What the numbers depend on, as plain JSON."""
        given = sorted(self._candidates.items()) if self._candidates else None
        return {"candidates_sha256": given and sha256(repr(given))}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        scores = ("clipscore",) if self._candidates is None else ("clipscore", "refclipscore")
        return (*scores, "num_examples")

    def run(self, params: PyTree) -> dict[str, float]:
        """Scores a caption of every picture, each counted once.

        Returns:
            The means "clipscore" (0 to 2.5) and, with candidates, "refclipscore", and
            "num_examples".

        Raises:
            ValueError: more than `max_bad` images do not decode, a picture without a caption to
                score, or a candidate of no picture.
            FloatingPointError: embeddings that are not finite.
        """
        params = put_on_mesh(params, self.mesh)
        mine: dict[str, Any] = {}

        def see(index: int, example: Example) -> None:
            mine[str(index)] = (example["key"], *self._captions(example))

        images = embed_images(self, params, self.source, check=self._captions, see=see)
        told: dict[str, Any] = {}
        for theirs in gather(mine):
            told |= theirs
        rows = [int(row) for row in np.flatnonzero(images.good)]
        texts = [told[str(row)] for row in rows]
        self._check_used(texts)
        flat = [PREFIX + text for _, caption, others in texts for text in (caption, *others)]
        embeds = embed_texts(self, params, flat)
        records = list(self._score(images.embeds[rows], texts, embeds))
        write_lines(self.output, records)
        means = {
            name: float(np.mean([record[name] for record in records]))
            for name in self.metric_names[:-1]
        }
        return means | {"num_examples": float(len(records))}

    def _captions(self, example: Example) -> tuple[str, tuple[str, ...]]:
        """Gives the caption to score and the references."""
        key, text = example["key"], example.get("text")
        if isinstance(text, Mapping):
            raise LabelError(
                f"{key} has captions in {', '.join(map(str, text))}: give ?language=NAME"
            )
        own = (text,) if isinstance(text, str) else tuple(text or ())
        own = tuple(caption for caption in own if caption.strip())
        if not own:
            raise LabelError(f"{key} has no caption")
        if self._candidates is None:
            return own[0], ()
        for name in _names(key):
            if name in self._candidates:
                return self._candidates[name], own
        raise LabelError(
            f"candidates has no caption of {key}; it is looked for as {', '.join(_names(key))}"
        )

    def _check_used(self, texts: list[Any]) -> None:
        if self._candidates is None:
            return
        used = {name for key, *_ in texts for name in _names(key)}
        unused = sorted({*self._candidates} - used)
        if len(unused) > self.max_bad:
            raise ValueError(
                f"{self.name}: {len(unused)} of {len(self._candidates)} candidates are of no "
                f"picture of the set, e.g. {unused[0]!r}; {self.max_bad} allowed (max_bad)"
            )

    def _score(
        self, images: np.ndarray, texts: list[Any], embeds: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        first = 0
        for image, (key, caption, others) in zip(images, texts, strict=True):
            of_caption = embeds[first]
            references = embeds[first + 1 : first + 1 + len(others)]
            first += 1 + len(others)
            score = WEIGHT * max(float(of_caption @ image), 0.0)
            record = {"key": key, "caption": caption, "clipscore": score}
            if len(references):
                near = max(float((references @ of_caption).max()), 0.0)
                both = score + near
                record["refclipscore"] = 2 * score * near / both if both else 0.0
            yield record


def _names(key: str) -> list[str]:
    """What a picture may be called: its key, its file, and that without the suffix."""
    file = key.rpartition("/")[2]
    return list(dict.fromkeys((key, file, file.rpartition(".")[0] or file)))
