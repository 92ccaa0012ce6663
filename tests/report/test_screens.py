"""The pages that are files, in headless Chromium: wide, on phones, light, dark, by the tab key.

The page of `clipjax serve` has its own test, tests/serving/test_page.py.
"""

import json

import numpy as np
import pytest
from embedding import checkpoint, index, pictures
from PIL import Image
from screens import CONTRAST, SCREENS, chromium, fits
from stand_ins import picture

from clipjax.data.sources import make_source
from clipjax.evals.naming import name_evals
from clipjax.evals.running import EvalResult, results_document
from clipjax.evals.zero_shot import Prediction
from clipjax.report.writing import Answers, results_page, write_report

pytestmark = pytest.mark.browser

__all__ = ["checkpoint", "chromium", "index", "pictures"]  # fixtures
LONG = "a red bicycle with a rather long name " * 4 + "https://example.org/" + "one_word_" * 20
# page -> pictures on it
PAGES = {"search": 20, "dedup": 22, "cluster": 22, "evaluation": 9, "report": 2}
# What has the focus is framed, and on the screen.
IS_SEEN = """() => {
  const box = document.activeElement.getBoundingClientRect();
  const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== "none" && box.bottom > 0 && box.top < window.innerHeight;
}"""


def evaluated():
    """Results with tables and pictures of each kind."""
    spec = "synthetic:16?side=32"
    zero_shot, retrieval = name_evals([("zero_shot", spec), ("retrieval", spec)])
    counts = {"examples": 9, "predicted": 9, "hits": 2, "recall": 0.22, "precision": 0.22}
    found = [{"row": row, "score": 0.9} for row in range(4)]
    tables = {
        "per_class": [{"name": name, **counts} for name in (LONG, "a dog")],
        "confusion": {"0": {"0": 2, "1": 7}, "1": {"0": 7, "1": 2}},
        "reliability": [
            {"from": 0.8, "to": 1.0, "examples": 18, "confidence": 0.9, "accuracy": 0.22}
        ],
        "confused": [{"class": 0, "answer": 1, "pictures": 7, "of": 9, "examples": found}],
    }
    queries = [{"row": 8, "rank": 9, "caption": LONG, "found": found}]
    recalls = {f"{side}_retrieval_recall@1": 0.1 for side in ("text", "image")}
    results = [
        EvalResult(name=zero_shot, metrics={"top1": 0.22, "ece": 0.68}, about={"tables": tables}),
        EvalResult(name=retrieval, metrics=recalls, about={"tables": {"queries": queries}}),
    ]
    return json.loads(json.dumps(results_document(7, results, {"model": "tiny"})))


@pytest.fixture
def write_page(command, index, tmp_path):
    """Writes each page, as its command does, with names that fit no line."""

    def gallery(verb, *flags):
        path = tmp_path / f"{verb}.html"
        done = command(verb, f"--index={index}", f"--html={path}", *flags)
        assert done.code == 0, done.err
        return path

    def write(name):
        if name == "search":
            return gallery("search", f"--query={LONG}")
        if name == "dedup":
            return gallery("dedup", "--threshold=-1")
        if name == "cluster":
            return gallery("cluster", "--clusters=3")
        if name == "evaluation":
            path = tmp_path / "evaluation.html"
            path.write_text(results_page(evaluated(), LONG, make_source), encoding="utf-8")
            return path
        guesses = (LONG, "a dog", "a cow"), (0.615, 0.3, 0.001)
        answers = [
            Prediction("k", picture(number), LONG, *guesses, correct=number == 0)
            for number in range(2)
        ]
        with open(tmp_path / "metrics.jsonl", "w", encoding="utf-8") as lines:
            for step in range(1, 20):
                lines.write(json.dumps({"step": step, "loss": 5 / step, "grad_norm": 1.0}) + "\n")
        (tmp_path / "results.json").write_text(json.dumps(evaluated()), encoding="utf-8")
        return write_report(tmp_path, Answers({"zero_shot/unseen": answers}))

    return write


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("screen", SCREENS)
def test_a_page_fits_its_screen_is_read_on_it_and_walked_by_the_tab_key(
    chromium, write_page, name, screen, tmp_path
):
    context = chromium.new_context(**SCREENS[screen])
    page = context.new_page()
    page.goto(write_page(name).as_uri())
    images = page.locator("main img")
    for number in range(images.count()):  # those below are loaded when they are seen
        images.nth(number).scroll_into_view_if_needed()
    page.wait_for_function("() => [...document.images].every(i => i.naturalWidth)")
    assert images.count() == PAGES[name] and fits(page)
    for words in ("h1", "header p", ".lede", "h3", "figcaption", "td", "th", ".answer li", "em"):
        for place in range(page.locator(words).count()):
            if page.locator(words).nth(place).is_visible():
                assert page.locator(words).nth(place).evaluate(CONTRAST) >= 4.5, (words, place)
    page.evaluate("document.activeElement.blur()")
    stops = page.locator("[tabindex='0']:visible, summary:visible")
    reached = []
    for _ in range(stops.count()):
        page.keyboard.press("Tab")
        assert page.evaluate(IS_SEEN), reached
        reached.append(page.evaluate("document.activeElement.outerHTML"))
    assert reached == [stops.nth(n).evaluate("e => e.outerHTML") for n in range(stops.count())]
    assert len(reached) > 0
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=tmp_path / "page.png")
    seen = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert (np.median(seen) < 100) == (SCREENS[screen]["color_scheme"] == "dark")
    context.close()
