"""What came of a sweep's runs, as a table and as data."""

import math
from collections.abc import Sequence
from typing import Any

from clipjax.sweep.running import Outcome

_SHOWN_BY_DEFAULT = ("top1", "recall@1", "mean_ap", "text_score")  # how names of metrics end


def metrics_shown(outcomes: Sequence[Outcome], asked: Sequence[str]) -> list[str]:
    """The metrics of the table: those asked for, else the headline results and the loss.

    Args:
        outcomes: of all runs.
        asked: names; one that begins with `-` is the better the smaller it is.

    Raises:
        ValueError: no run has a metric that is asked for, and some run has others.
    """
    known = sorted({name for outcome in outcomes for name in outcome.metrics})
    if not asked:
        results = [name for name in known if "/" in name and name.endswith(_SHOWN_BY_DEFAULT)]
        return [*results, "-loss"]
    for name in asked:
        if known and name.removeprefix("-") not in known:
            raise ValueError(f"--metric {name}: no run has it; there are {', '.join(known)}")
    return list(asked)


def ranked(outcomes: Sequence[Outcome], metric: str) -> list[Outcome]:
    """The runs that have the metric, the best first; behind them the others, in their order."""
    name, sign = metric.removeprefix("-"), 1 if metric.startswith("-") else -1

    def key(outcome: Outcome) -> float:
        value = outcome.metrics.get(name, math.nan)
        return sign * value if math.isfinite(value) else math.inf

    return sorted(outcomes, key=key)


def header(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> list[str]:
    """The names of the columns; a field by its last part where that is no other's."""
    paths = [path for path, _ in outcomes[0].run.point.values]
    ends = [path.rpartition(".")[2] for path in paths]
    short = [end if ends.count(end) == 1 else path for path, end in zip(paths, ends, strict=True)]
    return [*short, *(name.removeprefix("-") for name in metrics), "step", "state"]


def cells(outcome: Outcome, metrics: Sequence[str]) -> list[str]:
    """A row of the table."""
    values = [outcome.metrics.get(name.removeprefix("-")) for name in metrics]
    return [
        *(value for _, value in outcome.run.point.values),
        *("" if value is None else f"{value:.4g}" for value in values),
        str(max(outcome.step, 0)),
        outcome.state,
    ]


def to_text(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> str:
    """The table as text, the best run first; below it why runs failed."""
    order = ranked(outcomes, metrics[0])
    lines = [header(order, metrics), *(cells(outcome, metrics) for outcome in order)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    text += [f"{o.run.point.name}: {o.state}: {o.why}" for o in order if o.why]
    return "\n".join(text)


def to_json(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> dict[str, Any]:
    """The same as plain data, with all metrics of each run; JSON's null where one is not finite."""
    return {
        "metrics": list(metrics),
        "runs": [
            {
                "name": outcome.run.point.name,
                "values": dict(outcome.run.point.values),
                "workdir": str(outcome.run.workdir),
                "command": list(outcome.run.command),
                "state": outcome.state,
                "why": outcome.why,
                "step": outcome.step,
                "samples": outcome.run.samples,
                "forward_flops": outcome.run.forward_flops,
                "metrics": {
                    name: value if math.isfinite(value) else None
                    for name, value in sorted(outcome.metrics.items())
                },
            }
            for outcome in ranked(outcomes, metrics[0])
        ],
    }
