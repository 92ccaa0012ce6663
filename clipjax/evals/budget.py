"""Which evaluations a run has time for, by what they took before."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from absl import logging

from clipjax.evals.running import EvalResult, ScheduledEval
from clipjax.processes.distributed import gather

LEFT_OUT = "evals_left_out"  # of a step, beside its metrics

Group = tuple[str, str]  # kind and dataset, whose languages have a mean together


class EvalBudget:
    """Leaves out evaluations at intervals that would take more than a share of the run's time.

    An evaluation runs whole or not at all, and so do all languages of a dataset: what is left out
    has no number, rather than one of fewer examples. Each dataset has an equal part of the share.

    Args:
        evals: of the run.
        fraction: of the time since now that evaluations at intervals may take; 1 is no limit.
        clock: gives seconds.
    """

    def __init__(
        self,
        evals: Iterable[ScheduledEval],
        fraction: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fraction, self._clock, self._begin = fraction, clock, clock()
        self._share = fraction / max(1, len({_group(e) for e in evals if e.every_steps}))
        self._taken: dict[Group, float] = defaultdict(float)
        self._last: dict[Group, float] = {}

    def choose(self, step: int, due: Sequence[ScheduledEval]) -> list[ScheduledEval]:
        """Gives those of the evaluations that there is time for; a collective where any may not.

        One that has not run yet is taken to need no time: only running it tells what it needs.
        """
        if self._fraction == 1.0 or not due:
            return list(due)
        elapsed = self._clock() - self._begin
        groups = dict.fromkeys(map(_group, due))
        own = [
            self._taken[group] + self._last.get(group, 0.0) < self._share * elapsed
            for group in groups
        ]
        fits = dict(zip(groups, gather(own)[0], strict=True))  # clocks of processes differ
        for group in (group for group in groups if not fits[group]):
            logging.info(
                "step %d: %s is left out: at intervals it took %.1f s and would take %.1f s again, "
                "of %.1f s that the run is old; config.eval_time_fraction = %g gives it %.1f s",
                step,
                "/".join(group),
                self._taken[group],
                self._last.get(group, 0.0),
                elapsed,
                self._fraction,
                self._share * elapsed,
            )
        return [e for e in due if fits[_group(e)]]

    def took(self, results: Iterable[EvalResult]) -> None:
        """Notes what evaluations at an interval took."""
        seconds: dict[Group, float] = defaultdict(float)
        for result in results:
            seconds[result.name.kind, result.name.dataset] += result.seconds
        self._last |= seconds
        for group, spent in seconds.items():
            self._taken[group] += spent


def _group(scheduled: ScheduledEval) -> Group:
    return scheduled.name.kind, scheduled.name.dataset
