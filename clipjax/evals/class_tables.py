"""Tables of a classification by class, as plain JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_CONFUSION = 2000  # classes of a confusion matrix


def per_class_table(
    names: Sequence[str], examples: np.ndarray, predicted: np.ndarray, hits: np.ndarray
) -> list[dict[str, Any]]:
    """Lists examples, answers, hits, recall and precision of each class.

    Args:
        examples, predicted, hits: `[classes]`, counts.
    """
    return [
        {
            "name": name,
            "examples": int(n),
            "predicted": int(p),
            "hits": int(h),
            "recall": float(h / n) if n else None,
            "precision": float(h / p) if p else None,
        }
        for name, n, p, h in zip(names, examples, predicted, hits, strict=True)
    ]


def confusion_table(matrix: np.ndarray) -> dict[str, dict[str, int]]:
    """Writes counts `[classes, answers]` as place of the class -> place of the answer -> count."""
    rows = {}
    for row in np.flatnonzero(matrix.any(axis=1)).tolist():
        rows[str(row)] = {str(c): int(matrix[row, c]) for c in np.flatnonzero(matrix[row])}
    return rows


def tables_of(names: Sequence[str], labels: np.ndarray, answers: np.ndarray) -> dict[str, Any]:
    """Makes both tables of classes and answers `[examples]`; an answer of -1 is none."""
    count, told = len(names), answers >= 0
    tables: dict[str, Any] = {
        "per_class": per_class_table(
            names,
            np.bincount(labels, minlength=count),
            np.bincount(answers[told], minlength=count),
            np.bincount(labels[labels == answers], minlength=count),
        )
    }
    if count <= MAX_CONFUSION:
        matrix = np.zeros((count, count), np.int64)
        np.add.at(matrix, (labels[told], answers[told]), 1)
        tables["confusion"] = confusion_table(matrix)
    return tables
