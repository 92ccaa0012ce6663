"""The zero-shot head: a classifier whose weights are the texts of class names."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from clipjax.encoding.prompts import Prompts


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class ZeroShotScores:
    """What a head says of n images.

    Attributes:
        class_names: C names.
        logits: `[n, C]`, float32: s <image, class> + b, with the model's scale s and bias b.
        probabilities: `[n, C]`, float32: their softmax; for a model with a bias (SigLIP) their
            sigmoid, where each name is a question of its own.
    """

    class_names: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray

    def top(self, k: int | None = None) -> list[list[tuple[str, float]]]:
        """Ranks the names.

        Args:
            k: names for each image; all of them by default, and where there are fewer.

        Returns:
            For each row of `probabilities`, float32 `[n, C]`: (name, probability), the most
            probable first; ties in the names' order.

        Raises:
            ValueError: a k that is no whole number, or below 1.
        """
        if k is not None and (not isinstance(k, int | np.integer) or k < 1):
            raise ValueError(f"k is {k!r}: ask for a whole number of names, one or more")
        order = np.argsort(-self.logits, axis=1, kind="stable")[:, :k]
        return [
            [(self.class_names[c], float(row[c])) for c in ranks]
            for row, ranks in zip(self.probabilities, order, strict=True)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ZeroShotHead:
    """Says which of its class names fits an image best; `Model.zero_shot` makes it.

    Attributes:
        class_names: C names.
        weights: `[C, embed]`, float32, rows of length 1.
        prompts: the templates, and where they are from.
        encode_image: images -> `[n, embed]`, float32, rows of length 1.
        scale: factor of the cosines.
        bias: what is added to them; None for a model without it.
    """

    class_names: tuple[str, ...]
    weights: np.ndarray
    prompts: Prompts
    encode_image: Callable[[Iterable[Any]], Any]
    scale: float
    bias: float | None

    def __call__(self, images: Iterable[Any]) -> ZeroShotScores:
        """Scores the names for images.

        Args:
            images: n, as `Model.encode_image` takes them.

        Returns:
            logits and probabilities, float32 `[n, C]`, by class.

        Raises:
            ValueError: an image that cannot be used.

        Reference: arXiv:2103.00020, section 3.1; arXiv:2303.15343 for the sigmoid.
        """
        return self.scores_of(self.encode_image(images))

    def check_labels(self, labels: Sequence[str]) -> None:
        """Refuses a label alone where all share one probability, the softmax: it gets all of it.

        Raises:
            ValueError: there is one, of a model without a bias.
        """
        if self.bias is None and len(labels) < 2:
            raise ValueError(
                f"{labels[0]!r:.80} is the only label, and a softmax gives it all of the "
                "probability, whatever the picture: give two or more"
            )

    def scores_of(self, embeds: np.ndarray) -> ZeroShotScores:
        """Scores the names for embeddings of images, float32 `[n, embed]`, rows of length 1."""
        logits = np.float32(self.scale) * (embeds @ self.weights.T)
        if self.bias is not None:
            logits = logits + np.float32(self.bias)
            return ZeroShotScores(self.class_names, logits, 1 / (1 + np.exp(-logits)))
        exps = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return ZeroShotScores(self.class_names, logits, exps / exps.sum(axis=1, keepdims=True))
