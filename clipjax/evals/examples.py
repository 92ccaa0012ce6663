"""Rows of the source that show what an evaluation's numbers are made of, as plain JSON."""

from typing import Any

import numpy as np

MAX_PAIRS, MAX_ROWS = 8, 4  # pairs of classes, pictures of each
MAX_QUERIES, MAX_FOUND = 6, 4  # captions of either kind, pictures found for each


def confused_rows(
    rows: np.ndarray, labels: np.ndarray, answers: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
    """Lists the most confused pairs of classes, each with the surest of its wrong answers.

    Args:
        rows: `[examples]`, of the source.
        labels, answers: `[examples]`, places of classes.
        scores: `[examples]`, of the answers.

    Returns:
        Pairs by the share of the class that is called so: `class`, `answer`, `pictures` that are
        called so, `of` how many, and `examples`, each a `row` with its `score`.
    """
    wrong = np.flatnonzero(labels != answers)
    pairs, counts = np.unique(
        np.stack([labels[wrong], answers[wrong]], axis=1), axis=0, return_counts=True
    )
    of_class = np.bincount(labels)[pairs[:, 0]]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], counts, counts / of_class))[::-1][:MAX_PAIRS]
    scores = np.round(scores.astype(np.float64), 4)  # the last digits differ between devices
    found = []
    for pair in order.tolist():
        label, answer = pairs[pair].tolist()
        these = wrong[(labels[wrong] == label) & (answers[wrong] == answer)]
        surest = these[np.lexsort((rows[these], -scores[these]))[:MAX_ROWS]]
        found.append(
            {
                "class": label,
                "answer": answer,
                "pictures": int(counts[pair]),
                "of": int(of_class[pair]),
                "examples": [{"row": int(rows[i]), "score": float(scores[i])} for i in surest],
            }
        )
    return found


def hits_and_misses(ranks: np.ndarray) -> np.ndarray:
    """Chooses queries, `[chosen]`: some of those of rank 1, evenly spaced, and the worst others.

    Args:
        ranks: `[queries]`, from 1.
    """
    hits, misses = np.flatnonzero(ranks == 1), np.flatnonzero(ranks > 1)
    spaced = np.linspace(0, len(hits) - 1, min(len(hits), MAX_QUERIES)).astype(int)
    worst = misses[np.argsort(-ranks[misses], kind="stable")[:MAX_QUERIES]]
    return np.concatenate([hits[spaced], worst])
