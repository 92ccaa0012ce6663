import json

import pytest

from clipjax.evals import report_page
from clipjax.evals.running import (
    ScheduledEval,
    mean_over_languages,
    read_results,
    run_evals,
    write_results,
)


class Fixed:
    def __init__(self, **values):
        self.values = values

    def run(self, params):
        return self.values


def scheduled(prefix, **values):
    return ScheduledEval(name=prefix, metric_prefix=prefix, every_steps=0, eval=Fixed(**values))


NAMES = "zero_shot/names_unseen_language_"


def test_each_language_counts_alike_in_the_mean():
    results = run_evals(
        [
            scheduled(f"{NAMES}de", top1=0.5, num_classes=10.0, num_examples=100.0),
            scheduled(f"{NAMES}ja", top1=0.2, num_classes=10.0, num_examples=900.0),
            scheduled("zero_shot/others", top1=0.9, num_classes=3.0),
        ],
        params=None,
    )
    assert results[f"{NAMES}mean/top1"] == pytest.approx(0.35)
    assert results[f"{NAMES}mean/num_classes"] == 10
    assert f"{NAMES}mean/num_examples" not in results  # 100 and 900: neither is the mean's
    assert len([name for name in results if "mean" in name]) == 2


def test_one_language_and_no_language_have_no_mean():
    assert mean_over_languages({f"{NAMES}de/top1": 0.5, "zero_shot/x/top1": 0.1, "step": 3}) == {}
    # Other kinds and datasets are not mixed with each other, and a mean is no language.
    others = {f"{NAMES}de/top1": 0.5, "retrieval/names_unseen_language_fr/top1": 0.1}
    assert mean_over_languages({**others, f"{NAMES}mean/top1": 0.4}) == {}


def test_results_of_languages_that_come_one_by_one_have_the_mean_of_all(tmp_path):
    write_results(tmp_path, 7, {f"{NAMES}{x}/top1": v for x, v in (("de", 0.3), ("ja", 0.6))})
    write_results(tmp_path, 7, {f"{NAMES}fr/top1": 0.9})
    assert read_results(tmp_path)[f"{NAMES}mean/top1"] == pytest.approx(0.6)
    write_results(tmp_path, 8, {f"{NAMES}fr/top1": 0.9})  # a newer step starts afresh
    assert json.loads((tmp_path / "results.json").read_text()) == {
        f"{NAMES}fr/top1": 0.9,
        "step": 8,
    }


def test_the_report_has_a_line_a_language_and_one_tile():
    results = {f"{NAMES}{x}/top1": v for x, v in (("de", 0.25), ("zh", 0.75), ("mean", 0.5))}
    table = report_page.results_tables(results)
    assert (
        table.index("names_unseen, de") < table.index("names_unseen, zh") < table.index("mean of")
    )
    tiles = report_page.tiles(results)
    assert "50.0 %" in tiles
    assert "75.0 %" not in tiles
    alone = {name: value for name, value in results.items() if "mean" not in name}
    assert "75.0 %" in report_page.tiles(alone)
