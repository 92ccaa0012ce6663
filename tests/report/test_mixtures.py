"""The page of a mixture, and what a fine-tune has kept: numbers, and all of it escaped."""

import re

from report_page import HOSTILE

from clipjax.report.drift import drift_table
from clipjax.report.mixtures import mixture_page

FASHION, EMOJI = "zero_shot/fashion/top1", "zero_shot/emoji/top1"


def tried(alpha, fashion, emoji, path=HOSTILE):
    shares = {name: s for name, s in (("a", 1 - alpha), (path, alpha)) if s}
    metrics = {FASHION: fashion, EMOJI: emoji, "zero_shot/emoji/ece": 0.1}
    return {"alpha": alpha, "shares": shares, "metrics": metrics}


def test_a_line_is_drawn_and_what_was_written_is_marked():
    points = [tried(0.0, 0.1, 0.5), tried(0.5, 0.8, 0.45), tried(1.0, 0.9, 0.05)]
    page = mixture_page("Mixed", points, {"a": 0.5, HOSTILE: 0.5}, FASHION, {EMOJI: 0.8})
    assert page.count("<polyline") == 2 and ">alpha<" in page and HOSTILE not in page
    rows = re.findall(r"<tr><th>alpha ([\d.]+)</th>(.*?)<td>(\w*)</td></tr>", page)
    assert [(alpha, mark) for alpha, _, mark in rows] == [("0", ""), ("0.5", "written"), ("1", "")]
    assert "45.0 % (90.0 % kept)" in rows[1][1] and "5.0 % (10.0 % kept)" in rows[2][1]
    assert (
        f"chosen by {FASHION}, of those that keep 80.0 % of {EMOJI}" in page and "ece" not in page
    )


def test_means_have_no_line():
    points = [{k: v for k, v in tried(0.5, 0.8, 0.4).items() if k != "alpha"}]
    page = mixture_page("Mixed", points, points[0]["shares"], FASHION, {})
    assert "<polyline" not in page and "0.5 x a + 0.5 x" in page and HOSTILE not in page
    assert "Mixtures" not in mixture_page("Mixed", [], {"a": 1.0}, None, {})


def test_drift_is_since_step_0():
    points = {
        EMOJI: [(0.0, 0.5), (10.0, 0.4), (20.0, 0.3)],
        FASHION: [(0.0, 0.0), (20.0, 0.9)],
        "zero_shot/emoji/ece": [(0.0, 0.1), (20.0, 0.2)],
        "zero_shot/late/top1": [(10.0, 0.1), (20.0, 0.2)],  # a run from scratch has no step 0
    }
    table = drift_table(points, {})
    rows = [re.findall(r">([^<>]+)<", row) for row in table.split("<tr>")[2:]]
    assert rows[0] == ["emoji, top-1", "50.0 %", "30.0 %", "-20.0", "60.0 %"]
    assert rows[1] == ["fashion, top-1", "0.0 %", "90.0 %", "+90.0"] and len(rows) == 2
    assert drift_table({EMOJI: points[EMOJI][1:]}, {}) == ""
