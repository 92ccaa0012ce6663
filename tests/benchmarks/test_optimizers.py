"""benchmarks/optimizers.py: which rate is tried next, and what the tables say."""

import json

from benchmarks.optimizers import curve, curve_table, next_rate, rate_table, top1


def test_the_search_goes_on_at_an_end_that_is_the_best():
    found = {1e-3: 0.1, 2e-3: 0.3, 4e-3: 0.2}
    assert next_rate(found) is None
    assert next_rate({**found, 4e-3: 0.4}) == 8e-3
    assert next_rate({**found, 1e-3: 0.4}) == 5e-4
    assert next_rate({rate / 1000: rate for rate in (1, 2, 4, 8, 16)}) is None


def test_the_tables_have_every_rate_and_every_seed(tmp_path):
    rows = [{"step": 9, "loss": 5.0}, {"step": 19, "loss": 4.0}]
    evals = [
        {"step": 10, "zero_shot/a/top1": 0.1, "zero_shot/b/top1": 0.3, "zero_shot/a/top5": 1.0},
        {"step": 20, "zero_shot/a/top1": 0.5, "zero_shot/b/top1": None},
    ]
    for name, lines in (("metrics", rows), ("evals", evals)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    measured = curve(tmp_path)
    assert measured == {"loss": {9: 5.0, 19: 4.0}, "top1": {10: 0.2, 20: 0.25}}
    found = {"lion": {"rates": {2e-4: 0.25, 1e-4: 0.2}, "best": 2e-4, "curves": {"0": measured}}}
    assert rate_table(found)[2] == "| lion | 0.0001: 20.0, 0.0002: 25.0 | 0.0002 |"
    assert curve_table(found)[2] == "| lion, 0 | 20.0 (5.00) | 25.0 (4.00) |"
    assert top1({"loss": 1.0}) == 0.0
