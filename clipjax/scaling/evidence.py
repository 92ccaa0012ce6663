"""Runs with what they took and what they reached: of a sweep, or of a published ladder."""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from clipjax.strict_json import read_json

SWEEP = "sweep.json"
_GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Observation:
    """A run.

    Attributes:
        name: of it.
        group: the data it was trained on, where runs of several are told apart.
        samples: pairs seen.
        gmac: 10^9 multiply-adds of a forward pass of both towers, one pair.
        error: 1 - its accuracy, or its loss; above 0.
    """

    name: str
    group: str
    samples: float
    gmac: float
    error: float

    @property
    def compute(self) -> float:
        """GMAC of the forward passes of all pairs."""
        return self.samples * self.gmac


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What laws are fitted on.

    Attributes:
        about: a line for people.
        source: where the numbers are from.
        metric: the name of the result.
        is_share: whether the error is 1 - the metric; else it is the metric itself.
        observations: the runs.
        left_out: reason -> names of the runs that do not count.
    """

    about: str
    source: str
    metric: str
    is_share: bool
    observations: tuple[Observation, ...]
    left_out: Mapping[str, tuple[str, ...]]


def ladders() -> list[str]:
    """Names of the published ladders that come with this package."""
    folder = resources.files("clipjax.scaling").joinpath("ladders")
    return sorted(path.name.removesuffix(".json") for path in folder.iterdir())


def read_ladder_file(name: str) -> dict[str, Any]:
    """All that the file of a ladder holds.

    Raises:
        ValueError: there is no such ladder; those that there are.
    """
    if name not in ladders():
        raise ValueError(f"--ladder {name}: there is {', '.join(ladders())}")
    file = resources.files("clipjax.scaling").joinpath("ladders").joinpath(f"{name}.json")
    return json.loads(file.read_text(encoding="utf-8"))


def read_ladder(name: str, metric: str | None = None) -> Evidence:
    """A published ladder; its first metric by default.

    Raises:
        ValueError: there is no such ladder, or it has no such metric.
    """
    ladder = read_ladder_file(name)
    metric = metric or ladder["metrics"][0]
    if metric not in ladder["metrics"]:
        raise ValueError(f"--metric {metric}: the ladder {name} has {', '.join(ladder['metrics'])}")
    rows = [
        (run["name"], run["data"], run["samples"], run["gmac"], run.get(metric))
        for run in ladder["runs"]
    ]
    observations, left_out = _observe(rows, metric)
    return Evidence(ladder["about"], ladder["source"], metric, True, tuple(observations), left_out)


def read_sweep(folder: Path, metric: str | None = None, *, best: bool = True) -> Evidence:
    """The finished runs of a sweep; by default, the metric that it ranks by.

    Args:
        folder: the `--workdir` of `clipjax sweep`.
        metric: of its table of results; `-` in front: the smaller, the better, as a loss.
        best: of runs of one size and one number of examples take the best, as of a search for a
            rate; False takes all, as of several seeds.

    Raises:
        OSError, ValueError: there is no sweep, no run has the metric, or an older `clipjax sweep`
            wrote it.
    """
    try:
        sweep = read_json(folder / SWEEP)
        runs, ranking = sweep["runs"], sweep["metrics"][0]
        known = sorted({name for run in runs for name in run["metrics"]})
    except FileNotFoundError as error:
        raise ValueError(
            f"--sweep {folder}: there is no {SWEEP}; give the --workdir of `clipjax sweep`"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{folder / SWEEP} is none of `clipjax sweep`: {error}") from error
    metric = metric or ranking
    key = metric.removeprefix("-")
    if key not in known:
        raise ValueError(f"--metric {metric}: no run has it; there are {', '.join(known)}")
    rows, unfinished = [], []
    for run in runs:
        if run["state"] != "finished":
            unfinished.append(run["name"])
        elif not run.get("samples") or not run.get("forward_flops"):
            raise ValueError(
                f"{folder / SWEEP} does not say what {run['name']} took, as an older `clipjax "
                "sweep` wrote it: run its command again; finished runs are not run again"
            )
        else:
            gmac = run["forward_flops"] / 2 / _GIGA
            rows.append((run["name"], "", run["samples"], gmac, run["metrics"].get(key)))
    observations, left_out = _observe(rows, metric)
    if unfinished:
        left_out["not finished"] = tuple(unfinished)
    if best:
        observations, worse = best_of_equals(observations)
        if worse:
            left_out["not the best of its size and samples"] = tuple(worse)
    return Evidence(
        f"{len(runs)} runs of the sweep {folder.absolute().name}",
        str(folder / SWEEP),
        key,
        not metric.startswith("-"),
        tuple(observations),
        left_out,
    )


def _observe(
    rows: list[tuple[str, str, float, float, float | None]], metric: str
) -> tuple[list[Observation], dict[str, tuple[str, ...]]]:
    found, reasons = [], defaultdict(list)
    for name, group, samples, gmac, value in rows:
        if value is None or not math.isfinite(value):
            reasons[f"no finite {metric.removeprefix('-')}"].append(name)
            continue
        if not metric.startswith("-") and not 0 <= value <= 1:
            raise ValueError(
                f"--metric {metric}: {name} has {value:.4g}, which is no share of 1; of a metric "
                f"that falls, as a loss, write --metric=-{metric}"
            )
        error = value if metric.startswith("-") else 1 - value
        if error <= 0:
            reasons["no error left"].append(name)
            continue
        found.append(Observation(name, group, float(samples), float(gmac), error))
    return found, {reason: tuple(names) for reason, names in reasons.items()}


def best_of_equals(observations: list[Observation]) -> tuple[list[Observation], list[str]]:
    """Of runs of one group, size and number of samples the best; the names of the others."""
    best: dict[tuple[str, float, float], Observation] = {}
    for each in observations:
        key = (each.group, each.gmac, each.samples)
        if key not in best or each.error < best[key].error:
            best[key] = each
    kept = set(map(id, best.values()))
    return list(best.values()), [o.name for o in observations if id(o) not in kept]
