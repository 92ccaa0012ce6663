"""What the optimizer does to each parameter, as text that is read before step 0."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.optim.factory import lr_factors
from clipjax.optim.masks import decay_mask, matcher
from clipjax.trees import flatten_with_names


def optimizer_report(
    params: Any,
    *,
    mask: str,
    weight_decay: float,
    freeze: Sequence[str] = (),
    lr_scale: Sequence[tuple[str, float]] = (),
) -> str:
    """Lists every parameter with its shape and whether it is decayed, frozen or scaled."""
    leaves = flatten_with_names(params)
    names = [name for name, _ in leaves]
    decays = decay_mask(mask)
    frozen = matcher(freeze, names, path="freeze")
    factor = lr_factors(lr_scale, names)
    rows, totals = [], {"decayed": 0, "not decayed": 0, "frozen": 0}
    for name, leaf in leaves:
        size = int(np.prod(leaf.shape))
        state = "decayed" if decays(name) and weight_decay else "not decayed"
        state = "frozen" if frozen(name) else state
        totals[state] += size
        scale = "" if factor(name) == 1.0 or state == "frozen" else f"lr x {factor(name):g}"
        rows.append((name, str(tuple(leaf.shape)), f"{size:,}", state, scale))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    aligned = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["  " + "  ".join(cells).rstrip() for cells in aligned]
    summary = ", ".join(f"{count:,} {state}" for state, count in totals.items() if count)
    return "\n".join([f"parameters: {summary}", *lines])
