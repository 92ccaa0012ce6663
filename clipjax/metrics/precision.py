"""Average precision of rankings, one a class."""

import numpy as np


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Averages the precision at each positive of a class's ranking of the examples.

    AP = sum_n (R_n - R_{n-1}) P_n over the distinct scores, the highest first

    Equal scores are one step, whatever their order: a constant score has the share of positives.

    Args:
        scores: `[examples, classes]`, finite.
        targets: `[examples, classes]`, bool: whether the example shows the class.

    Returns:
        `[classes]`, float64; NaN of a class that no example shows.
    """
    found = np.full(scores.shape[1], np.nan)
    for place in np.flatnonzero(targets.any(axis=0)):
        order = np.argsort(-scores[:, place], kind="stable")
        ranked, hits = scores[order, place], np.cumsum(targets[order, place])
        last = np.append(ranked[1:] != ranked[:-1], True)  # of each run of equal scores
        precision = hits[last] / (np.flatnonzero(last) + 1)
        found[place] = np.sum(np.diff(hits[last], prepend=0) * precision) / hits[-1]
    return found
