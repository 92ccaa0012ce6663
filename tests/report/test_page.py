import json
import re

import jax
import numpy as np
import pytest
from report_page import HOSTILE, Page
from stand_ins import make_params, picture
from test_zero_shot import make_eval, make_source, mesh_of

import clipjax
from clipjax.checkpoint import CheckpointManager
from clipjax.evals.naming import name_evals
from clipjax.evals.running import ScheduledEval
from clipjax.evals.zero_shot import Prediction
from clipjax.metric_writers import MetricWriter
from clipjax.report import page as report_page
from clipjax.report import writing
from clipjax.report.curves import chart, format_number, smooth
from clipjax.report.writing import (
    Answers,
    collect_answers,
    package_commit,
    read_curves,
    write_report,
)

RESULTS = {
    "zero_shot/unseen/top1": 0.4721,
    "zero_shot/unseen/top5": 0.7005,
    "zero_shot/unseen/num_examples": 394.0,
    "zero_shot/unseen/num_classes": 394.0,
    "retrieval/unseen/text_retrieval_recall@10": 0.5,
    "retrieval/unseen/text_retrieval_recall@5": 0.25,
    "step": 70,
}


def prediction(correct=True, label="a cat", names=("a cat", "a dog", "a cow"), key="k"):
    return Prediction(key, picture(7), label, names, (0.615, 0.3, 0.001), correct)


@pytest.fixture
def workdir(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    for step in range(1, 71):
        writer.write(step, {"loss": 5.0 - step / 20, "learning_rate": 1e-3, "samples_per_s": 320})
        if step % 35 == 0:
            writer.write_evals(step, {"zero_shot/unseen/top1": step / 150})
    writer.close()
    (tmp_path / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    metadata = {
        "config": {"batch_size": 256, "note": HOSTILE, "rates": [{"a": 0.123456789}]},
        "contract": {"model": {"name": HOSTILE}},
        "dataset_fingerprint": "ab" * 32,
        "global_batch_size": 256,
        "seed": 5,
    }
    state = {"step": np.int32(70), "params": {"image_encoder": {"kernel": np.zeros((30, 50))}}}
    manager = CheckpointManager(tmp_path / "checkpoints", metadata=metadata)
    manager.save(70, jax.device_put(state), block=True)
    manager.close()
    return tmp_path


def test_the_page_is_whole_and_needs_nothing_else(workdir, monkeypatch):
    predictions = [
        prediction(),
        prediction(False, "a dog"),
        prediction(False, HOSTILE, (HOSTILE[::-1], HOSTILE, "x"), key=f'"{HOSTILE}'),
    ]
    monkeypatch.setattr(writing, "package_commit", lambda: "abc123")
    path = write_report(workdir, Answers({f"zero_shot/{HOSTILE}": predictions}))
    assert path == workdir / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "form", "a"} & set(tags)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes), tag
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "url(" not in path.read_text(encoding="utf-8")
    assert tags.count("img") == 3
    for text in ("47.2 %", "chance 0.25 %", "394", "abc123", "0.123456789", "1,500", HOSTILE):
        assert text in page.text, text
    assert page.text.index("image to text R@5") < page.text.index("image to text R@10")
    kinds = [a["class"] for t, a in page.tags if t == "article"]
    assert kinds == ["answer card right", "answer card wrong", "answer card wrong"]
    marks = [a.get("class") for t, a in page.tags if t == "li"]
    assert marks == ["hit", "", "", "miss", "hit", "", "miss", "hit", ""]
    assert "1 of 3 first guesses are right" in page.text


def test_hostile_text_would_be_seen_if_it_were_not_escaped(workdir, monkeypatch):
    monkeypatch.setattr(report_page, "escape", lambda text: text)
    path = write_report(workdir, Answers({"zero_shot/x": [prediction(label=HOSTILE)]}))
    assert "script" in [tag for tag, _ in Page(path.read_text(encoding="utf-8")).tags]


def test_parts_without_data_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n', encoding="utf-8")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Loss" in page.text
    assert "Results" not in page.text
    assert "Answers" not in page.text
    with pytest.raises(ValueError, match="nothing to report"):
        write_report(tmp_path / "none")


def test_answers_come_from_the_evaluations():
    zero_shot = make_eval(make_source(9)[0], mesh_of(1))
    names = name_evals([("zero_shot", "numbers"), ("retrieval", "x")])
    scheduled = ScheduledEval(key="a", name=names[0], every_steps=0, eval=zero_shot)
    other = ScheduledEval(key="b", name=names[1], every_steps=0, eval=object())
    found, searched = collect_answers([scheduled, other], make_params(), num_pictures=4)
    assert searched == {}
    assert [p.key for p in found.pop("zero_shot/numbers")] == [
        "picture 0",
        "picture 2",
        "picture 5",
        "picture 8",
    ]
    assert found == {}


def test_curves_read_each_step_once_and_survive_a_cut_line(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [
        '{"step": 2, "loss": 9}',
        '{"step": 1, "loss": 8, "x": null}',
        '{"step": 2, "loss": 7}',
    ]
    path.write_text("\n".join([*lines, '{"step": 3, "lo']), encoding="utf-8")
    assert read_curves(path) == {"loss": [(1, 8.0), (2, 7.0)]}
    assert read_curves(tmp_path / "none") == {}


def test_a_chart_keeps_its_points_inside_and_its_last_one():
    points = [(step, 10 / step) for step in range(1, 2001)]
    text = chart("a < b", {"x & y": points, "nan": [(1, float("nan"))]})
    assert "a &lt; b" in text
    assert "x &amp; y" in text
    (end,) = set(re.findall(r'x2="([\d.]+)"', text))
    for line in re.findall(r'points="([^"]+)"', text):
        coordinates = np.array([[float(v) for v in p.split(",")] for p in line.split()])
        assert len(coordinates) <= 400
        assert (coordinates >= 0).all()
        assert (coordinates <= (400, 210)).all()
        assert coordinates[-1][0] == float(end)
    assert chart("empty", {"nan": [(1, float("nan"))]}) == ""
    assert "circle" in chart("one", {"a": [(5, 1.0)]})
    assert chart("flat", {"a": [(1, 2.0), (2, 2.0)]})
    assert chart("small", {"a": [(1, 0.0), (2, 3e-6)]}, percent=True)


def labels_of(text):
    """Tick label -> (left, right) in the picture."""
    found = {}
    for x, anchor, label in re.findall(
        r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)">([^<]+)<', text
    ):
        width = 6.2 * len(label)  # of 11 pixels high digits; measured in a browser
        left = float(x) - width * {"end": 1, "middle": 0.5}[anchor]
        found[label] = (left, left + width)
    return found


@pytest.mark.parametrize(
    "values", [(14.28505, 14.28515), (1_234_567.0, 3_999_999.0), (-1e-5, 2e-5), (0.1, 123.4)]
)
def test_tick_labels_are_never_cut_and_never_alike(values):
    text = chart("a", {"a": list(enumerate(values, start=12_000_000))})
    labels = labels_of(text)
    assert len(labels) == text.count('class="tick"') >= 7, "two ticks have one label"
    for label, (left, right) in labels.items():
        assert left >= 0, label
        assert right <= 400, label


@pytest.mark.parametrize("last", [1, 2, 3, 7, 12, 999])
def test_the_axis_of_steps_has_whole_steps(last):
    text = chart("a", {"a": [(step, 0.5) for step in range(last + 1)]}, percent=True)
    steps = [label for label in labels_of(text) if "%" not in label and label != "step"]
    assert steps and all(label.replace(",", "").isdigit() for label in steps)


def test_curves_that_coincide_are_drawn_in_turns():
    line = [(step, step / 10) for step in range(10)]
    other = [(step, 1 - step / 10) for step in range(10)]
    text = chart("a", {"one": line, "same": line, "other": other}, percent=True)
    dashes = re.findall(r'stroke-dasharray="(\d+) (\d+)" stroke-dashoffset="-(\d+)"', text)
    assert dashes == [("12", "12", "0"), ("12", "12", "12")]  # where one is off, the other is on
    points = {"one": [(5, 0.5)], "same": [(5, 0.5)]}
    assert re.findall(r' r="(\d+)"', chart("a", points)) == ["8", "4"]  # the larger one below
    assert "dasharray" not in chart("a", {"one": line, "other": other})


def test_every_kind_of_evaluation_has_charts_of_its_own_and_every_curve_a_colour():
    evals = {f"zero_shot/set{n}/top1": [(0, 0.1), (5, 0.2)] for n in range(8)}
    evals |= {"retrieval/c/image_retrieval_recall@1": [(0, 0.1), (5, 0.2)]}
    text = report_page.charts({}, evals, {})
    figures = dict(
        re.findall(
            r"<figure class=\"chart\"><figcaption><h3>([^<]+)</h3>(.*?)</figure>", text, re.S
        )
    )
    assert [(title, body.count('class="key')) for title, body in figures.items()] == [
        ("Evaluation: zero-shot, 1 of 2", 6),
        ("Evaluation: zero-shot, 2 of 2", 2),
        ("Evaluation: retrieval", 1),
    ]


def test_wide_tables_can_be_scrolled_by_keyboard_and_show_it():
    text = report_page.page(
        title="t",
        subtitle="",
        sections=[
            report_page.results_tables(RESULTS, {}),
            report_page.details({"a": 1}, {"b": 2}, {}),
        ],
        footer="",
    )
    tables = [attributes for tag, attributes in Page(text).tags if tag == "table"]
    regions = [a for tag, a in Page(text).tags if tag == "div" and "scroll" in a.get("class", "")]
    assert len(tables) == len(regions) == 4
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
    assert ".scroll { overflow-x: auto; background:" in text  # the shadow at the edge


def test_smoothing_does_not_bend_a_line():
    line = [(x, 3.0 * x + 1) for x in range(30)]
    np.testing.assert_allclose(smooth(line, 5), line)
    noisy = [(x, float(x % 2)) for x in range(30)]
    assert np.std([y for _, y in smooth(noisy, 5)][5:-5]) < 0.1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (1400.4, "1,400"), (3e-5, "3e-5"), (33.123, "33.1"), (2, "2")],
)
def test_numbers_for_people(value, text):
    assert format_number(value) == text


def test_the_commit_is_found_in_a_checkout_or_not_claimed(tmp_path, monkeypatch):
    assert package_commit() is None or re.match(r"[\w.-]+$", package_commit())
    monkeypatch.setattr(clipjax, "__file__", str(tmp_path / "clipjax" / "__init__.py"))
    assert package_commit() is None
