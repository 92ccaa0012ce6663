"""Mixtures of checkpoints of one model: the mean, a greedy soup, the line between two."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from absl import logging

from clipjax.checkpoint import choose_step, naming_older_steps
from clipjax.data.sources import make_source
from clipjax.data.storage.files import local_path
from clipjax.evals.running import ScheduledEval, flat_metrics, list_metrics, run_evals
from clipjax.evaluate import build_on
from clipjax.inference.loading import find_weights, variables_of
from clipjax.inference.opened import open_model
from clipjax.interop.converting import weight_digests
from clipjax.interop.files.atomic import check_new, new_path
from clipjax.interop.formats import named_format
from clipjax.interop.mixing import check_alike, mixture
from clipjax.interop.reading import read_weights
from clipjax.interop.weights import NO_HINTS, Hints, Weights
from clipjax.partitioning import make_mesh

METHODS = ("uniform", "greedy", "between")
ALPHAS = tuple(number / 10 for number in range(11))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup:
    """What was mixed and what was found on the way.

    Attributes:
        shares: path -> its share of what was written; 0 was left out.
        metric: that chose; None where nothing was measured.
        tried: every mixture that was evaluated, in order: `shares`, by path, and `metrics`; of
            `between` also `alpha`, the share of the second.
        metrics: of what was written; empty where nothing was measured.
        target: what was written.
        keep: metric -> share of the first checkpoint's that a point was to keep.
    """

    shares: Mapping[str, float]
    metric: str | None
    tried: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    target: Path
    keep: Mapping[str, float] = dataclasses.field(default_factory=dict)


def make_soup(
    paths: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    method: str = "uniform",
    evals: Sequence[tuple[str, str]] = (),
    fields: Mapping[str, Any] | None = None,
    metric: str | None = None,
    alpha: float | None = None,
    alphas: Sequence[float] = ALPHAS,
    keep: Mapping[str, float] | None = None,
    hints: Hints = NO_HINTS,
    batch_size: int = 256,
) -> Soup:
    """Mixes checkpoints and writes the mixture as one, `<target>/checkpoints/0`.

    Args:
        paths: of two or more checkpoints of one model, see `evaluate_checkpoint`.
        target: a path that does not exist.
        method: `uniform`, their mean; `greedy`: from the best one on, each that does not make the
            mean of those that were taken worse (arXiv:2203.05482, recipe 1); `between`:
            `(1 - alpha) first + alpha second` (WiSE-FT, arXiv:2109.01903).
        evals: evaluations, (kind, dataset). What chooses has to be data that is not reported on.
        fields: of zero-shot evaluations, as a config gives them.
        metric: `<kind>/<dataset>/<metric>`, whose largest value is chosen; by default the top-1
            accuracy of the first evaluation.
        alpha: of `between`; None chooses among `alphas`.
        alphas: the curve's.
        keep: of `between`, metric -> share of the first checkpoint's value: of the points that keep
            as much of each, the best is chosen; so that a fine-tune does not forget.
        hints: what files of another package cannot say.
        batch_size: over all devices.

    Raises:
        ValueError: a wrong number of checkpoints, other models, nothing to choose by, or a metric
            that no evaluation measures.
    """
    names = [str(path) for path in paths]
    keep = dict(keep or {})
    _check(names, method, evals, alpha, alphas, keep)
    target = local_path(target)
    check_new(target)
    with ExitStack() as stack:
        ingredients = {name: _read(name, hints, stack) for name in names}
        check_alike(ingredients)
        kitchen = None
        if evals:
            kitchen = _Kitchen(ingredients, hints, evals, fields or {}, metric, batch_size, keep)
        if method == "greedy":
            assert kitchen is not None
            shares = _greedy(names, kitchen)
        elif method == "between":
            shares = _between(names, kitchen, alpha, alphas, keep)
        else:
            shares = _even(names)
        metrics = kitchen.metrics_of(shares) if kitchen is not None else {}
        write = named_format("clipjax").write
        assert write is not None
        with new_path(target) as temporary:
            write(temporary, _mixed(ingredients, shares))
    return Soup(
        shares={name: shares.get(name, 0.0) for name in names},
        metric=kitchen.metric if kitchen is not None else None,
        tried=kitchen.tried if kitchen is not None else [],
        metrics=metrics,
        target=target,
        keep=keep,
    )


def _check(
    names: Sequence[str],
    method: str,
    evals: Sequence[tuple[str, str]],
    alpha: float | None,
    alphas: Sequence[float],
    keep: Mapping[str, float],
) -> None:
    if method not in METHODS:
        raise ValueError(f"--method {method}: allowed are {', '.join(METHODS)}")
    if len(names) < 2 or (method == "between" and len(names) > 2):
        wanted = "two" if method == "between" else "two or more"
        raise ValueError(f"{len(names)} checkpoints are given; --method {method} mixes {wanted}")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is given twice; keep one of them")
    if alpha is not None and method != "between":
        raise ValueError(f"--alpha {alpha}: it is of --method between")
    for each in (*alphas, *([] if alpha is None else [alpha])):
        if not 0 <= each <= 1:
            raise ValueError(f"alpha = {each}: it is from 0, the first checkpoint, to 1")
    if keep and (method != "between" or alpha is not None):
        raise ValueError("--keep is for the choice of a point: --method between, without --alpha")
    for name, share in keep.items():
        if not 0 < share <= 1:
            raise ValueError(f"--keep {name}={share}: a share above 0, to 1")
    chooses = method == "greedy" or (method == "between" and alpha is None)
    if chooses and not evals:
        raise ValueError(
            f"--method {method} chooses by an evaluation: give --zero_shot SPEC, on data that you "
            "do not report on" + (", or --alpha" if method == "between" else "")
        )


def _read(name: str, hints: Hints, stack: ExitStack) -> Weights:
    """One ingredient, named by its files' digests; of a run that goes on, one step throughout."""
    path = find_weights(name)
    if named_format("clipjax").recognises(path, NO_HINTS):
        path = choose_step(path).step_dir
        stack.enter_context(naming_older_steps(path))
    found, weights = read_weights(path, hints)
    digests = ", ".join(f"{k} (SHA-256 {v})" for k, v in weight_digests(path, found).items())
    return dataclasses.replace(weights, source=f"{found}: {digests}")


def _even(names: Sequence[str]) -> dict[str, float]:
    return {name: 1 / len(names) for name in names}


def _mixed(ingredients: Mapping[str, Weights], shares: Mapping[str, float]) -> Weights:
    return mixture([(share, ingredients[name]) for name, share in shares.items()])


def _greedy(names: Sequence[str], kitchen: "_Kitchen") -> dict[str, float]:
    alone = {name: kitchen.value_of({name: 1.0}) for name in names}
    best, *rest = sorted(names, key=lambda name: -alone[name])
    taken, value = [best], alone[best]
    for name in rest:
        tried = kitchen.value_of(_even([*taken, name]))
        if tried >= value:
            taken, value = [*taken, name], tried
    return _even(taken)


def _between(
    names: Sequence[str],
    kitchen: "_Kitchen | None",
    alpha: float | None,
    alphas: Sequence[float],
    keep: Mapping[str, float],
) -> dict[str, float]:
    first, second = names
    # What is to be kept of the first has to be measured of it.
    points = sorted({*alphas, *([0.0] if keep else [])})
    line = {each: {first: 1 - each, second: each} for each in points}
    if alpha is not None:
        line = {**line, alpha: {first: 1 - alpha, second: alpha}}
    if kitchen is None:
        assert alpha is not None
        return line[alpha]
    values = {each: kitchen.value_of(shares, alpha=each) for each, shares in sorted(line.items())}
    if alpha is not None:
        return line[alpha]
    if keep:
        found = {each: kitchen.metrics_of(shares) for each, shares in line.items()}
        wanted = {name: share * found[0.0][name] for name, share in keep.items()}
        kept = [e for e in values if all(found[e][name] >= w for name, w in wanted.items())]
        values = {each: values[each] for each in kept}
    # Of equal ones the nearest to the first, which is known to be good at more.
    return line[max(sorted(values), key=lambda each: values[each])]


class _Kitchen:
    """Evaluates mixtures, each once; the programs are compiled once for all of them."""

    def __init__(
        self,
        ingredients: Mapping[str, Weights],
        hints: Hints,
        evals: Sequence[tuple[str, str]],
        fields: Mapping[str, Any],
        metric: str | None,
        batch_size: int,
        keep: Mapping[str, float],
    ) -> None:
        self._ingredients = ingredients
        self.tried: list[dict[str, Any]] = []
        self._mesh = make_mesh({"data": -1})
        sources, specs = {}, {}
        for kind, where in evals:
            key = f"--{kind} {where}"
            sources[key] = make_source(where, path=f"--{kind}")
            specs[key] = {"name": kind, "source": where, "batch_size": batch_size}
            specs[key] |= fields if kind == "zero_shot" else {}
        opened = open_model(next(iter(ingredients)), hints, mesh=self._mesh, batch_size=batch_size)
        # Classifiers are kept by the digest of the weights, and a mixture has none.
        opened = dataclasses.replace(opened, sha256=None)
        self._evals: Sequence[ScheduledEval] = build_on(opened, specs, sources)
        known, _ = list_metrics(self._evals)
        self.metric = metric or f"{self._evals[0].name.prefix}/top1"
        for flag, name in (("metric", self.metric), *(("keep", name) for name in keep)):
            if name not in known:
                raise ValueError(
                    f"--{flag} {name}: the evaluations measure {', '.join(known)}; name one"
                )

    def metrics_of(self, shares: Mapping[str, float], **about: Any) -> Mapping[str, float]:
        """All metrics of a mixture."""
        shares = {name: share for name, share in shares.items() if share}
        for entry in self.tried:
            if entry["shares"] == shares:
                return entry["metrics"]
        variables = variables_of(_mixed(self._ingredients, shares), self._mesh)
        with jax.set_mesh(self._mesh):
            metrics = flat_metrics(run_evals(self._evals, variables))
        told = " + ".join(f"{share:.4g} x {name}" for name, share in shares.items())
        logging.info("%s: %s = %.4f", told, self.metric, metrics[self.metric])
        self.tried.append({**about, "shares": shares, "metrics": metrics})
        return metrics

    def value_of(self, shares: Mapping[str, float], **about: Any) -> float:
        """What is compared."""
        return self.metrics_of(shares, **about)[self.metric]
