"""Pictures and tables of what stands beside the metrics of an evaluation."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from report_page import HOSTILE, Page

from clipjax.data.source import SampleError
from clipjax.data.sources import make_source
from clipjax.evals.naming import name_evals
from clipjax.evals.running import EvalResult, results_document, with_means
from clipjax.report import figures
from clipjax.report.examples import examples_section
from clipjax.report.figures import Bar, bars, confusion, reliability
from clipjax.report.found import found_section
from clipjax.report.writing import results_page, results_pictures, write_report

CLASSES = [
    {"name": "cat", "examples": 4, "predicted": 5, "hits": 3, "recall": 0.75, "precision": 0.6},
    {"name": HOSTILE, "examples": 2, "predicted": 1, "hits": 0, "recall": 0.0, "precision": 0.0},
    {"name": "none", "examples": 0, "predicted": 0, "hits": 0, "recall": None, "precision": None},
]
MATRIX = {"0": {"0": 3, "1": 1}, "1": {"0": 2}}
CURVE = [
    {"from": 0.2, "to": 0.4, "examples": 2, "confidence": 0.3, "accuracy": 0.0},
    {"from": 0.8, "to": 1.0, "examples": 4, "confidence": 0.9, "accuracy": 0.75},
]
GROUPS = {"region": {f"r{n}": {"examples": 2, "top1": n / 40, "top5": 1.0} for n in range(40)}}


def result(kind, metrics, tables=None):
    (name,) = name_evals([(kind, "folder:x")])
    return EvalResult(name=name, metrics=metrics, about={"tables": tables} if tables else {})


ZERO_SHOT = result(
    "zero_shot",
    {"top1": 0.5, "ece": 0.125, "num_examples": 6.0, "num_classes": 3.0},
    {"per_class": CLASSES, "confusion": MATRIX, "reliability": CURVE, "groups": GROUPS},
)
ALL = [
    ZERO_SHOT,
    result(
        "retrieval",
        {f"{s}_retrieval_recall@{k}": k / 20 for s in ("text", "image") for k in (1, 5)},
    ),
    result("few_shot", {"top1_2_shot": 0.5, "top1_16_shot": 0.75, "top1_16_shot_deviation": 0.05}),
    result(
        "linear_probe",
        {"top1": 0.5, "top5": 0.75, "strength": 0.001},
        {"sweep": [{"strength": 0.001, "accuracy": 0.625}]},
    ),
    result("winogavil", {"jaccard": 0.4, "num_groups": 3.0}),
    result(
        "bias",
        {"accuracy": 0.5},
        {"bias": [{"group": HOSTILE, "num_examples": 2, "accuracy": 0.5, "flips": 0.25}]},
    ),
]


def document():
    return json.loads(json.dumps(results_document(7, ALL, {"model": "tiny"})))


def test_the_page_of_results_is_whole_and_its_pictures_are_files(monkeypatch):
    page = Page(results_page(document(), HOSTILE, make_source))
    assert not {"script", "link", "a"} & {tag for tag, _ in page.tags}
    titles = (
        "Recall by class",
        "Confusion",
        "Most confused",
        "Accuracy by confidence",
        "Top-1 by region",
    )
    others = ("Recall among the k best", "Top-1 by pictures to learn from", "Scores")
    bias = ("Accuracy by group, with its own word", "Answers that change with another group's word")
    for text in (*titles, *others, *bias, "All 3 classes", "ECE 12.5 %", "75.0 % ± 5.0", HOSTILE):
        assert text in page.text, text
    assert "the 12 lowest and the 12 highest of 40 groups" in page.text
    assert "0.001" in page.text  # lambda is no share
    found = results_pictures(document())
    assert set(found) == {
        *(f"zero_shot_folder_x_{n}" for n in ("per_class", "confusion", "confused", "reliability")),
        *(
            "zero_shot_folder_x_by_region",
            "retrieval_folder_x_retrieval",
            "few_shot_folder_x_few_shot",
        ),
        *("linear_probe_folder_x_scores", "linear_probe_folder_x_sweep"),
        "winogavil_folder_x_scores",
        *("bias_folder_x_bias", "bias_folder_x_flips"),
    }
    for text in found.values():
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    monkeypatch.setattr(figures, "html_words", lambda text: text)
    assert "script" in results_page(document(), "x", make_source)


def rectangles(text, kind="bar"):
    """(x, y, width, height) of each bar."""
    form = rf'<rect class="{kind}[^>]* x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"'
    return [tuple(map(float, found)) for found in re.findall(form, text)]


def test_bars_are_as_long_as_their_shares():
    text = bars(
        "a", [Bar("all", 1.0), Bar("half", 0.5), Bar("nan", float("nan")), Bar("none", 0.0)]
    )
    whole, half, none = (width for _, _, width, _ in rectangles(text))
    assert half == pytest.approx(whole / 2, abs=0.1) and none == 0 and "nan" not in text
    assert bars("a", []) == ""
    text = bars("a", [Bar("m" * 100, 0.5, spread=2.0)])
    assert all(0 <= float(x) <= 400 for x in re.findall(r'x[12]?="(-?[\d.]+)"', text))


def test_the_curve_of_reliability_has_its_bins():
    (low, high) = rectangles(reliability(CURVE, 0.1))
    assert low[3] == 0 and high[3] > 0
    full = [{**CURVE[1], "accuracy": 1.0}]
    assert high[3] == pytest.approx(0.75 * rectangles(reliability(full, None))[0][3], abs=0.1)
    assert high[0] - low[0] == pytest.approx(3 * (low[2] + 1), abs=0.2)  # three bins to the right
    assert reliability([], 0.0) == ""


def test_the_matrix_has_a_cell_for_each_answer_given():
    text = confusion(MATRIX, ["cat", "dog"])
    cells = rectangles(text)
    assert len(cells) == 3 and len({(x, y) for x, y, _, _ in cells}) == 3
    assert re.findall(r'bar (s\d)" fill-opacity="([\d.]+)"', text) == [
        ("s2", "0.75"),
        ("s1", "0.25"),
        ("s1", "1"),
    ]
    assert "dog is called cat: 2 of 2" in text
    assert confusion(MATRIX, [str(n) for n in range(51)]) == ""


@pytest.mark.parametrize(
    "tables",
    [
        {"per_class": [{"name": "x"}]},
        {"per_class": CLASSES, "confusion": {"0": {"9": 1}}},
        {"per_class": CLASSES, "confusion": {"zero": {"0": 1}}},
        {"reliability": [{"examples": "many"}]},
        {"groups": {"region": [1]}},
        [1],
    ],
)
def test_tables_that_are_none_are_told_and_left_out(tables, tmp_path, caplog):
    assert found_section(result("zero_shot", {"top1": 0.5}, tables), {}) == ""
    assert "the tables of zero_shot/folder_x cannot be shown" in caplog.text
    bent = results_document(7, [result("zero_shot", {"top1": 0.5}, tables)], {})
    (tmp_path / "results.json").write_text(json.dumps(bent), encoding="utf-8")
    assert "50.0 %" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_report_of_a_run_shows_them_and_keeps_them_out_of_its_facts(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(document()), encoding="utf-8")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert "Accuracy by confidence" in page.text and "per_class" not in page.text


def test_languages_that_have_a_mean_are_folded_and_single_pictures_have_no_bars():
    specs = [("zero_shot", f"folder:x?language={language}") for language in ("de", "fr")]
    tables = {"per_class": [{**CLASSES[0], "examples": 1}], "reliability": CURVE}
    found = [
        EvalResult(name=n, metrics={"top1": 0.5}, about={"tables": tables})
        for n in name_evals(specs)
    ]
    text = results_page(results_document(7, with_means(found), {}), "x", make_source)
    assert (
        len(re.findall('<details class="card"><summary>zero shot: folder_x, (de|fr)<', text)) == 2
    )
    assert "<h2>zero shot" not in text and "Recall by class" not in Page(text).text
    assert "<h2>zero shot: folder_x, de</h2>" in results_page(
        results_document(7, found[:1], {}), "x", make_source
    )


def confused(rows):
    pair = {"class": 1, "answer": 0, "pictures": 7, "of": 9}
    examples = [{"row": row, "score": 0.5 + row / 100} for row in rows]
    tables = {
        "per_class": CLASSES,
        "reliability": CURVE,
        "confused": [{**pair, "examples": examples}],
    }
    return result("zero_shot", {"top1": 0.5}, tables)


def test_pictures_of_confusions_are_the_rows_that_the_table_names(caplog):
    class Rows:
        def __getitem__(self, row):
            if row == 2:
                raise SampleError("missing_image", "there is no file", "gone.png")
            image = b"no picture" if row == 3 else np.zeros((4, 8, 3), np.uint8)
            return {"key": f"{row}.png", "image": image, "text": HOSTILE}

    page = Page(examples_section(confused([5, 2, 3, 0]), lambda spec: Rows()))
    images = [fields for tag, fields in page.tags if tag == "img"]
    assert [fields["alt"] for fields in images] == [f"{n}.png; {HOSTILE}" for n in (5, 0)]
    assert all(fields["src"].startswith("data:image/jpeg;base64,") for fields in images)
    assert f"{HOSTILE} called cat: 7 of 9" in page.text
    assert (
        "cat, 55.0\N{NO-BREAK SPACE}%" in page.text and "cat, 50.0\N{NO-BREAK SPACE}%" in page.text
    )
    assert "gone.png: there is no file" in page.text and "3.png: " in page.text

    def closed(spec):
        raise ValueError(f"{spec} is not there")

    with caplog.at_level("WARNING"):
        assert examples_section(confused([5]), closed) == ""
    assert "folder:x is not there" in caplog.text
    assert examples_section(ZERO_SHOT, closed) == ""


def test_a_caption_stands_with_what_it_finds_and_its_own_picture_is_marked():
    class Rows:
        def __getitem__(self, row):
            return {"key": f"{row}.png", "image": np.zeros((4, 8, 3), np.uint8), "text": "x"}

    found = [{"row": row, "score": 0.5} for row in (4, 2, 7, 1)]
    queries = [
        {"caption": HOSTILE, "row": 4, "rank": 1, "found": found},
        {"caption": "near", "row": 7, "rank": 3, "found": found},
        {"caption": "far", "row": 9, "rank": 1234, "found": found},
    ]
    shown = result("retrieval", {"image_retrieval_recall@1": 0.5}, {"queries": queries})
    text = examples_section(shown, lambda spec: Rows())
    page, cards = Page(text), text.split("<section")[1:]
    assert HOSTILE in page.text and len(cards) == 3
    rows = [re.findall(r'alt="(\d+)', card) for card in cards]
    assert rows == [["4", "2", "7", "1"], ["4", "2", "7", "1"], ["4", "2", "7", "1", "9"]]
    own = [re.findall(r'<figure class=own><img [^>]*alt="(\d+)', card) for card in cards]
    assert own == [["4"], ["7"], ["9"]]
    words = [re.findall("<figcaption>(✓.*?)</figcaption>", card) for card in cards]
    assert words == [["✓ rank 1, cosine 0.50"], ["✓ rank 3, cosine 0.50"], ["✓ rank 1,234"]]
    assert re.findall('<em aria-label="(.*?)">', text) == ["right", "wrong", "wrong"]
