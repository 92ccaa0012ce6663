"""Power laws: known ones are found again, and intervals hold what they say."""

import numpy as np
import pytest

from clipjax.scaling.law import Law, fit_law, fit_power, fit_with_floor, frontier


def quantities(count, seed=0):
    """Sizes of 5 to 300 GMAC, and 1e8 to 3e10 samples: `[count, 2]`."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.uniform(np.log([5, 1e8]), np.log([300, 3e10]), (count, 2)))


def test_a_law_of_two_quantities_is_found_again():
    law, x = Law(4.2, (-0.13, -0.09)), quantities(9)
    found = fit_power(x, law.error(x))
    assert found.coefficient == pytest.approx(4.2)
    assert found.exponents == pytest.approx((-0.13, -0.09))
    whole = fit_law(x, law.error(x), num_resamples=100)
    assert whole.law.floor == 0  # none where there is none
    assert whole.exponent_interval(0, 0.9) == pytest.approx((-0.13, -0.13))


def test_an_irreducible_error_is_found_again():
    law, x = Law(30.0, (-0.25,), floor=0.15), quantities(12)[:, 1:]
    error = law.error(x)
    assert fit_with_floor(x, error).floor == pytest.approx(0.15, abs=1e-3)
    noise = np.exp(np.random.default_rng(1).normal(0, 0.003, 12))
    found = fit_law(x, error * noise, num_resamples=100)
    low, high = found.floor_interval(0.9)
    assert low < 0.15 < high and high - low < 0.15
    assert found.law.exponents[0] == pytest.approx(-0.25, abs=0.05)
    # A pure law of the same runs would be off by more than their noise.
    pure = fit_power(x, error)
    assert np.abs(np.log(pure.error(x) / error)).max() > 0.01


def test_intervals_hold_what_they_say():
    """Of 30 sets of runs, about nine tenths hold the truth; without the resamples nearly none."""
    law, new = Law(5.0, (-0.12, -0.08)), np.array([500.0, 1e11])
    rng = np.random.default_rng(3)
    exponents = runs = narrow = 0
    for trial in range(30):
        x = quantities(9, seed=trial)
        found = fit_law(x, law.error(x) * np.exp(rng.normal(0, 0.02, 9)), num_resamples=100)
        low, high = found.exponent_interval(0, 0.9)
        exponents += low < -0.12 < high
        error, low, high = found.expected(new, 0.9)
        runs += low < law.error(new) * np.exp(rng.normal(0, 0.02)) < high
        narrow += abs(error / law.error(new) - 1) < 0.001
    assert 24 <= exponents <= 30 and 24 <= runs <= 30
    assert narrow < 12


def test_what_cannot_be_told_apart_has_no_law():
    x = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0], [16.0, 160.0]])
    assert fit_power(x, np.linspace(0.5, 0.4, 5)) is None
    assert fit_law(np.ones((5, 1)), np.linspace(0.5, 0.4, 5)) is None


def test_the_frontier_is_the_best_run_of_each_part():
    x = np.array([[1.0], [2.0], [9.0], [10.0], [99.0], [100.0]])
    error = np.array([0.5, 0.4, 0.3, 0.35, 0.2, 0.25])
    assert frontier(x, error, 2).tolist() == [2, 4]
    assert frontier(x, error, 1).tolist() == [4]
