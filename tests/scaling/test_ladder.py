"""LAION's ladder: its numbers, and what its authors found on it."""

import numpy as np
import pytest

from clipjax.models import resolve_spec
from clipjax.plan.model_flops import model_flops
from clipjax.scaling import LAION_PARTS, fit_scaling, read_ladder, read_ladder_file

LADDER = read_ladder_file("laion")


def test_the_numbers_agree_with_a_second_place():
    """ImageNet by the training's own evaluation; multiply-adds by this package's count."""
    runs = LADDER["runs"]
    assert len(runs) == 29 and len({run["name"] for run in runs}) == 29
    for run in runs:
        assert abs(run["imagenet1k/top1"] - run["imagenet1k/top1 while training"]) <= 0.0013
        assert set(LADDER["metrics"]) < set(run)
    for name in {run["model"] for run in runs}:
        needs = model_flops(resolve_spec({"name": name}), None, batch_size=1)
        (gmac,) = {run["gmac"] for run in runs if run["model"] == name}
        assert (needs.image + needs.text) / 2e9 == pytest.approx(gmac, rel=0.005), name


@pytest.mark.parametrize("metric", sorted(LADDER["published"]))
def test_the_published_exponents_are_found(metric):
    coefficient, exponent = LADDER["published"][metric]
    fit = fit_scaling(read_ladder("laion", metric), parts=LAION_PARTS, num_resamples=100)
    (found,) = fit.laws[0].fitted.law.exponents
    assert round(found, 2) == exponent
    # Over the ladder the two lines are one, to 3 % of the error.
    for compute in (5e10, 6e12):
        ours = fit.laws[0].fitted.law.error(np.array([compute]))
        assert ours == pytest.approx(coefficient * compute**exponent, rel=0.2)
    # Through all runs, those with too little data for their compute, too, it is another one.
    all_runs = fit_scaling(read_ladder("laion", metric), parts=0, num_resamples=100)
    assert round(all_runs.laws[0].fitted.law.exponents[0], 2) != exponent


def test_models_outside_the_ladder_lie_in_the_interval():
    """Published by open_clip later: g/14 of 34 B pairs, and bigG/14 of 39 B, on LAION-2B."""
    fit = fit_scaling(read_ladder("laion"), parts=LAION_PARTS, num_resamples=300)
    compute, two_billion = fit.laws[0], fit.laws[-1]
    assert two_billion.group == "LAION-2B"
    for gmac, samples, accuracy in ((290.74, 34e9, 0.7847), (532.92, 39e9, 0.8009)):
        _, low, high = compute.fitted.expected(np.array([gmac * samples]), 0.9)
        assert low < 1 - accuracy < high
        error, _, _ = two_billion.fitted.expected(np.array([gmac, samples]), 0.9)
        assert error == pytest.approx(1 - accuracy, abs=0.01)


def test_what_there_is_not_is_named():
    with pytest.raises(ValueError, match="--ladder openai: there is laion"):
        read_ladder("openai")
    with pytest.raises(ValueError, match="--metric cifar: the ladder laion has imagenet1k/top1"):
        read_ladder("laion", "cifar")
