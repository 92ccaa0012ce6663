"""Power laws with an irreducible error, and how sure one can be of them.

    E = c + a x_1^b_1 ... x_k^b_k

for an error E > 0 and quantities x > 0: compute, or a model's size and the examples that it saw.
Fitted is ln E, so that equal shares of an error count alike; without c by linear least squares,
with it by SciPy's bounded least squares. Intervals are those of a bootstrap over the runs, as much
wider as Student's t is than the normal distribution: of few runs a bootstrap alone is too sure.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from scipy.optimize import least_squares

Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (x, error) -> which runs

_SAME = 1e-6  # a share of the error that is rounding: a law that is nearer than that is exact
_LARGEST_FLOOR = 0.98  # of the smallest error
_STARTS = (0.0, 0.3, 0.6, 0.9)  # of the search for c, as shares of the smallest error


@dataclasses.dataclass(frozen=True)
class Law:
    """A law.

    Attributes:
        coefficient: a.
        exponents: b, of each quantity.
        floor: c, the irreducible error; 0 for a pure power law.
    """

    coefficient: float
    exponents: tuple[float, ...]
    floor: float = 0.0

    def error(self, x: np.ndarray) -> np.ndarray:
        """E of quantities `[..., k]`: float64 `[...]`."""
        power = math.log(self.coefficient) + np.log(x) @ np.asarray(self.exponents)
        return self.floor + np.exp(power)


def fit_power(x: np.ndarray, error: np.ndarray) -> Law | None:
    """Fits E = a x^b.

    Args:
        x: `[n, k]`, above 0.
        error: `[n]`, above 0.

    Returns:
        None where the quantities do not vary enough to tell their exponents apart.
    """
    design, centre = _design(x)
    (level, *exponents), _, rank, _ = np.linalg.lstsq(design, np.log(error), rcond=1e-6)
    if rank < design.shape[1]:
        return None
    return Law(math.exp(level - centre @ exponents), tuple(map(float, exponents)))


def fit_with_floor(x: np.ndarray, error: np.ndarray, start: Law | None = None) -> Law | None:
    """Fits E = c + a x^b, 0 <= c < min E; as `fit_power`, from several starts or from `start`."""
    design, centre = _design(x)
    most = 0.999 * float(error.min())
    found = []
    for share in _STARTS if start is None else (0.0,):
        floor = share * float(error.min())
        begin = start or fit_power(x, error - floor)
        if begin is None:
            return None
        if start is not None:
            floor = min(start.floor, 0.999 * most)
        level = math.log(begin.coefficient) + centre @ np.asarray(begin.exponents)

        def power(free: np.ndarray) -> np.ndarray:
            return np.exp(np.clip(design @ free[:-1], -500.0, 500.0))

        def residuals(free: np.ndarray) -> np.ndarray:
            return np.log(free[-1] + power(free)) - np.log(error)

        def slopes(free: np.ndarray) -> np.ndarray:
            part = power(free)
            whole = free[-1] + part
            return np.column_stack([design * (part / whole)[:, None], 1 / whole])

        bounds = ([-np.inf] * design.shape[1] + [0.0], [np.inf] * design.shape[1] + [most])
        free = [level, *begin.exponents, floor]
        found.append(least_squares(residuals, free, slopes, bounds=bounds, x_scale="jac"))
    best = min(found, key=lambda each: each.cost)
    level, *exponents, floor = best.x
    return Law(math.exp(level - centre @ exponents), tuple(map(float, exponents)), float(floor))


def _design(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of 1 and of ln x about their means, which keeps the levels small; the means."""
    logs = np.log(x)
    centre = logs.mean(axis=0)
    return np.column_stack([np.ones(len(x)), logs - centre]), centre


def _num_free(law: Law, error: np.ndarray) -> int:
    """Degrees of freedom that are left: n - k - 1, one less with an irreducible error."""
    return max(len(error) - len(law.exponents) - 1 - (law.floor > 0), 1)


def supports_floor(pure: Law, with_floor: Law, x: np.ndarray, error: np.ndarray) -> bool:
    """Whether the runs show an irreducible error: the corrected AIC is lower with it by 2."""

    def criterion(law: Law, num_free: int) -> float:
        count = len(error)
        if count - num_free - 1 <= 0:
            return math.inf
        off = np.log(error) - np.log(law.error(x))
        mean = max(float(off @ off) / count, _SAME**2)
        return (
            count * math.log(mean)
            + 2 * num_free
            + 2 * num_free * (num_free + 1) / (count - num_free - 1)
        )

    if with_floor.floor > _LARGEST_FLOOR * float(error.min()):
        return False  # it stopped at the edge: the best run would be nothing but floor
    num_free = x.shape[1] + 2  # the level, the exponents, the spread
    lower = criterion(with_floor, num_free + 1)
    return lower < math.inf and lower < criterion(pure, num_free) - 2


@dataclasses.dataclass(frozen=True)
class FittedLaw:
    """A law of runs, with its resamples.

    Attributes:
        law: of all runs.
        x: `[n, k]`, what it was fitted to.
        error: `[n]`.
        resamples: the laws of resampled runs.
        draws: of each of these a residual, ln of a run's error over its law's.
    """

    law: Law
    x: np.ndarray
    error: np.ndarray
    resamples: tuple[Law, ...]
    draws: np.ndarray

    @property
    def spread(self) -> float:
        """How far runs are from the law, as a share of their error: a standard deviation."""
        off = np.log(self.error) - np.log(self.law.error(self.x))
        return float(np.sqrt(off @ off / _num_free(self.law, self.error)))

    def exponent_interval(self, number: int, level: float) -> tuple[float, float]:
        """Where an exponent lies, by the resamples."""
        return self._interval(
            self.law.exponents[number], [law.exponents[number] for law in self.resamples], level
        )

    def floor_interval(self, level: float) -> tuple[float, float]:
        """Where the irreducible error lies, by the resamples; not below 0."""
        low, high = self._interval(self.law.floor, [law.floor for law in self.resamples], level)
        return max(low, 0.0), high

    def expected(self, x: np.ndarray, level: float) -> tuple[float, float, float]:
        """E of one more run with quantities `[k]`, and the interval that it should lie in."""
        error = float(self.law.error(x))
        logs = [math.log(law.error(x)) for law in self.resamples] + self.draws
        low, high = self._interval(math.log(error), logs, level)
        return error, math.exp(low), math.exp(high)

    def _interval(
        self, value: float, resampled: Sequence[float] | np.ndarray, level: float
    ) -> tuple[float, float]:
        """Quantiles of the resamples, drawn away from the value by Student's t."""
        upper = (1 + level) / 2
        wider = stats.t.ppf(upper, _num_free(self.law, self.error)) / stats.norm.ppf(upper)
        low, high = np.quantile(np.asarray(resampled), [1 - upper, upper])
        return value + float(wider * (low - value)), value + float(wider * (high - value))


def fit_law(
    x: np.ndarray,
    error: np.ndarray,
    *,
    choose: Choose | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> FittedLaw | None:
    """Fits a law, with an irreducible error where the runs show one, and resamples the runs.

    Args:
        x: `[n, k]`, above 0.
        error: `[n]`, above 0.
        choose: (x, error) -> which runs to fit; all without it. It chooses anew in each resample.
        num_resamples: of the runs, with replacement; those that a law cannot be told from are
            drawn again.
        seed: of the draws.

    Returns:
        None as `fit_power`.
    """
    chosen = np.arange(len(error)) if choose is None else choose(x, error)
    used_x, used = x[chosen], error[chosen]
    law = fit_power(used_x, used)
    if law is None:
        return None
    other = fit_with_floor(used_x, used)
    has_floor = other is not None and supports_floor(law, other, used_x, used)
    if has_floor and other is not None:
        law = other
    rng = np.random.default_rng(seed)
    off = np.log(used) - np.log(law.error(used_x))
    off *= math.sqrt(len(used) / _num_free(law, used))  # a fit draws its runs to itself
    laws: list[Law] = []
    for _ in range(20 * num_resamples):
        if len(laws) == num_resamples:
            break
        drawn = rng.integers(len(error), size=len(error))
        if choose is not None:
            drawn = drawn[choose(x[drawn], error[drawn])]
        if has_floor and len(np.unique(drawn)) < x.shape[1] + 3:
            continue
        again = fit_power(x[drawn], error[drawn])
        if again is not None and has_floor:
            again = fit_with_floor(x[drawn], error[drawn], start=law)
        if again is not None:
            laws.append(again)
    if not laws:
        return None
    draws = rng.choice(off, size=len(laws))
    return FittedLaw(law, used_x, used, tuple(laws), draws)


def frontier(x: np.ndarray, error: np.ndarray, parts: int) -> np.ndarray:
    """The run with the least error in each of `parts` equal parts of ln x `[n, 1]`.

    The way of arXiv 2212.07143, but for the place of a run: here it is its own, there the middle of
    its part.

    Returns:
        Indices, in order of x.
    """
    logs = np.log(x[:, 0])
    width = (logs.max() - logs.min()) / parts or 1.0
    part = np.minimum(((logs - logs.min()) / width).astype(int), parts - 1)
    found = [np.flatnonzero(part == each) for each in range(parts)]
    return np.array([run[error[run].argmin()] for run in found if len(run)])
