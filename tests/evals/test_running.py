import json

import pytest

from clipjax.evals.naming import EvalName, name_evals
from clipjax.evals.running import (
    EvalResult,
    ScheduledEval,
    flat_metrics,
    read_document,
    read_results,
    results_in,
    run_evals,
    with_means,
    write_results,
)
from clipjax.report import page as report_page
from clipjax.report.writing import read_curves


class Fixed:
    def __init__(self, **values):
        self.values = values

    def run(self, params):
        return self.values

    def about(self):
        return {"templates": "plain"}


def name_of(spec, kind="zero_shot"):
    return name_evals([(kind, spec)])[0]


def scheduled(spec, **values):
    return ScheduledEval(key=spec, name=name_of(spec), every_steps=0, eval=Fixed(**values))


def result(spec, kind="zero_shot", **values):
    return EvalResult(name=name_of(spec, kind), metrics=values)


NAMES = "zero_shot/names_unseen_language_"


def test_each_language_counts_alike_in_the_mean():
    found = run_evals(
        [
            scheduled("names:unseen?language=de", top1=0.5, num_classes=10.0, num_examples=100.0),
            scheduled("names:unseen?language=ja", top1=0.2, num_classes=10.0, num_examples=900.0),
            scheduled("others", top1=0.9, num_classes=3.0),
        ],
        variables=None,
    )
    results = flat_metrics(found)
    assert results[f"{NAMES}mean/top1"] == pytest.approx(0.35)
    assert results[f"{NAMES}mean/num_classes"] == 10
    assert f"{NAMES}mean/num_examples" not in results  # 100 and 900: neither is the mean's
    assert len([name for name in results if "mean" in name]) == 2
    assert [r.name.languages for r in found] == [("de",), ("ja",), (), ("de", "ja")]


@pytest.mark.parametrize(
    "others",
    [
        [result("others", top1=0.1)],
        # Other kinds and datasets are not mixed with each other.
        [result("names:unseen?language=fr", "retrieval", top1=0.1)],
        [result("names:seen?language=fr", top1=0.1)],
        # The names of these folders are no languages.
        [result("folder:asl_sign_language_de", top1=0.1), result("folder:asl_sign_language_fr")],
        # A source in all languages is none of them.
        [result("names:unseen?language=all", top1=0.1)],
    ],
)
def test_one_language_and_no_language_have_no_mean(others):
    results = [result("names:unseen?language=de", top1=0.5), *others]
    assert with_means(results) == results


def test_results_of_languages_that_come_one_by_one_have_the_mean_of_all(tmp_path):
    one_by_one = {
        x: result(f"names:unseen?language={x}", top1=v)
        for x, v in zip(("de", "ja", "fr"), (0.3, 0.6, 0.9), strict=True)
    }
    write_results(tmp_path, 7, [one_by_one["de"], one_by_one["ja"]])
    write_results(tmp_path, 7, [one_by_one["fr"]])
    assert read_results(tmp_path)[f"{NAMES}mean/top1"] == pytest.approx(0.6)
    write_results(tmp_path, 8, [one_by_one["fr"]])  # a newer step starts afresh
    assert read_results(tmp_path) == {f"{NAMES}fr/top1": 0.9, "step": 8}


def test_results_hold_their_structure_beside_the_flat_numbers(tmp_path):
    found = run_evals([scheduled("names:unseen?language=de", top1=0.5)], variables=None)
    path = write_results(tmp_path, 7, found, {"checkpoint_sha256": None})
    written = json.loads(path.read_text())
    assert written[f"{NAMES}de/top1"] == 0.5
    entry = written["evaluations"][f"{NAMES}de"]
    assert (entry["kind"], entry["dataset"]) == ("zero_shot", "names_unseen")
    assert entry["languages"] == ["de"]
    assert entry["templates"] == "plain"
    assert results_in(read_document(tmp_path)) == found
    # A file of before holds numbers alone, and they stay.
    path.write_text(json.dumps({"zero_shot/old/top1": 0.25, "step": 7}))
    write_results(tmp_path, 7, found)
    assert read_results(tmp_path) == {"zero_shot/old/top1": 0.25, f"{NAMES}de/top1": 0.5, "step": 7}


def test_the_report_has_a_line_a_language_and_one_tile():
    found = with_means(
        [result(f"names:unseen?language={x}", top1=v) for x, v in (("de", 0.25), ("zh", 0.75))]
    )
    names = {r.name.prefix: r.name for r in found}
    results = flat_metrics(found)
    table = report_page.results_tables(results, names)
    assert (
        table.index("names_unseen, de") < table.index("names_unseen, zh") < table.index("mean of")
    )
    tiles = report_page.tiles(results, names)
    assert "50.0 %" in tiles
    assert "75.0 %" not in tiles
    alone = {name: value for name, value in results.items() if "mean" not in name}
    assert "75.0 %" in report_page.tiles(alone, {k: n for k, n in names.items() if not n.is_mean})


def test_no_two_evaluations_write_one_metric():
    asked = ["folder:x/a", "folder:x_a", "folder:x_b", "folder:\u732b", "folder:\u72ac"]
    asked += ["openmoji:unseen", "openmoji:unseen?language=de", "mix:[{}]"]
    names = name_evals([("zero_shot", spec) for spec in asked])
    prefixes = [name.prefix for name in names]
    assert len(set(prefixes)) == len(asked)
    assert [name.spec for name in names] == asked
    # Whatever else is evaluated, and in whatever order, a name stays, and most are as they were.
    again = name_evals([("zero_shot", spec) for spec in asked[1::-1]])
    assert [name.prefix for name in again] == prefixes[1::-1]
    assert prefixes[2] == "zero_shot/folder_x_b"
    assert prefixes[5:7] == ["zero_shot/openmoji_unseen", "zero_shot/openmoji_unseen_language_de"]


@pytest.mark.parametrize(
    "asked", [["folder:x", "folder:x"], ["folder:x_language_de", "folder:x?language=de"]]
)
def test_the_same_metrics_twice_are_an_error(asked):
    with pytest.raises(ValueError, match="keep one of them"):
        name_evals([("zero_shot", spec) for spec in asked])


def test_options_beside_the_spec_name_an_evaluation_as_those_in_it():
    (mapped,) = name_evals([("zero_shot", {"spec": "openmoji:unseen", "language": "de"})])
    assert mapped == name_of("openmoji:unseen?language=de")
    assert mapped == EvalName(
        kind="zero_shot",
        dataset="openmoji_unseen",
        languages=("de",),
        spec="openmoji:unseen?language=de",
    )


RESULT = {"kind": "zero_shot", "dataset": "a", "languages": [], "spec": "", "metrics": {"top1": 1}}


@pytest.mark.parametrize(
    "document",
    [
        *([], "[" * 10**5, "{", {"evaluations": [3]}, {"evaluations": {"a": {}}}, {"tokenizer": 3}),
        {"checkpoint_sha256": 3},
        {"evaluations": {"a": {**RESULT, "metrics": {"top1": "high"}}}},
        {"evaluations": {"a": {**RESULT, "metrics": [1]}}},
        {"evaluations": {"a": {**RESULT, "languages": 3}}},
        {"evaluations": {"a": {**RESULT, "kind": ["zero_shot"]}}},
    ],
)
def test_results_that_are_none_are_one_error(tmp_path, document):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"evaluations": {"a": RESULT}, "zero_shot/a/top1": float("nan")}))
    assert len(results_in(read_document(tmp_path))) == 1
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(ValueError, match=r"results\.json does not hold results"):
        read_document(tmp_path)


def test_curves_that_are_none_are_left_out(tmp_path, caplog):
    path = tmp_path / "evals.jsonl"
    lines = [
        '{"step": 1e999}',
        "[" * 10**5,
        '{"step": [1]}',
        "3",
        f'{{"step": 1, "a": {"9" * 400}}}',
        '{"step": 1, "a": 2, "b/c": 3}',
    ]
    path.write_text("\n".join(lines))
    curves = read_curves(path)
    assert curves == {"a": [(1, 2.0)], "b/c": [(1, 3.0)]}
    assert report_page.charts({}, {"top1": [(1, 1.0)]}, {}) == ""  # of no evaluation
