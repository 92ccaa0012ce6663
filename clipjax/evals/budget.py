"""Which evaluations a run has time for, by what they took before."""

from collections import defaultdict
from collections.abc import Callable, Iterable, MutableMapping, Sequence

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
        fraction: of the run's time that evaluations at intervals may take; 1 is no limit.
        age_s: gives the seconds that the run is old, those before a restart included.
        taken: seconds by `kind/dataset`, in all and of the last time; changed by `took`.
    """

    def __init__(
        self,
        evals: Iterable[ScheduledEval],
        fraction: float,
        age_s: Callable[[], float],
        taken: MutableMapping[str, tuple[float, float]],
    ) -> None:
        self._fraction, self._age_s, self._taken = fraction, age_s, taken
        self._share = fraction / max(1, len({_group(e) for e in evals if e.every_steps}))

    def choose(self, step: int, due: Sequence[ScheduledEval]) -> list[ScheduledEval]:
        """Gives those of the evaluations that there is time for; a collective where any may not.

        One that has not run yet is taken to need no time: only running it tells what it needs.
        """
        if self._fraction == 1.0 or not due:
            return list(due)
        elapsed = self._age_s()
        groups = dict.fromkeys(map(_group, due))
        own = [sum(self._of(group)) < self._share * elapsed for group in groups]
        fits = dict(zip(groups, gather(own)[0], strict=True))  # clocks of processes differ
        for group in (group for group in groups if not fits[group]):
            logging.info(
                "step %d: %s is left out: at intervals it took %.1f s and would take %.1f s again, "
                "of %.1f s that the run is old; config.eval_time_fraction = %g gives it %.1f s",
                step,
                "/".join(group),
                *self._of(group),
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
        for group, spent in seconds.items():
            self._taken["/".join(group)] = (self._of(group)[0] + spent, spent)

    def _of(self, group: Group) -> tuple[float, float]:
        return self._taken.get("/".join(group), (0.0, 0.0))


def _group(scheduled: ScheduledEval) -> Group:
    return scheduled.name.kind, scheduled.name.dataset
