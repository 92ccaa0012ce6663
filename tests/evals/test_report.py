import json
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from stand_ins import make_params, picture
from test_zero_shot import make_eval, make_source, mesh_of

import clipjax
from clipjax.checkpoint import CheckpointManager
from clipjax.evals import report_page
from clipjax.evals.curves import chart, format_number, smooth
from clipjax.evals.report import collect_predictions, package_commit, read_curves, write_report
from clipjax.evals.running import ScheduledEval
from clipjax.evals.zero_shot import Prediction
from clipjax.metric_writers import make_writer

HOSTILE = "<script>alert(\"x\")</script> & 'co'"
RESULTS = {
    "zero_shot/unseen/top1": 0.4721,
    "zero_shot/unseen/top5": 0.7005,
    "zero_shot/unseen/num_examples": 394.0,
    "zero_shot/unseen/num_classes": 394.0,
    "retrieval/unseen/text_retrieval_recall@10": 0.5,
    "retrieval/unseen/text_retrieval_recall@5": 0.25,
    "step": 70,
}


class Page(HTMLParser):
    """Collects tags and text, and fails on tags that do not match."""

    VOID = ("meta", "img", "line", "circle", "polyline", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def prediction(correct=True, label="a cat", names=("a cat", "a dog", "a cow"), key="k"):
    return Prediction(key, picture(7), label, names, (0.615, 0.3, 0.001), correct)


@pytest.fixture
def workdir(tmp_path):
    writer = make_writer(tmp_path, tensorboard=False)
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


def test_the_page_is_whole_and_needs_nothing_else(workdir):
    predictions = [
        prediction(),
        prediction(False, "a dog"),
        prediction(False, HOSTILE, (HOSTILE[::-1], HOSTILE, "x"), key=f'"{HOSTILE}'),
    ]
    path = write_report(workdir, predictions={f"zero_shot/{HOSTILE}": predictions}, commit="abc123")
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
    path = write_report(workdir, predictions={"zero_shot/x": [prediction(label=HOSTILE)]})
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
    scheduled = ScheduledEval(
        name="a", metric_prefix="zero_shot/numbers", every_steps=0, eval=zero_shot
    )
    other = ScheduledEval(name="b", metric_prefix="retrieval/x", every_steps=0, eval=object())
    found = collect_predictions([scheduled, other], make_params(), num_predictions=4)
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
    for line in re.findall(r'points="([^"]+)"', text):
        coordinates = np.array([[float(v) for v in p.split(",")] for p in line.split()])
        assert len(coordinates) <= 400
        assert (coordinates >= 0).all()
        assert (coordinates <= (400, 210)).all()
        assert coordinates[-1][0] == 390
    assert chart("empty", {"nan": [(1, float("nan"))]}) == ""
    assert "circle" in chart("one", {"a": [(5, 1.0)]})
    assert chart("flat", {"a": [(1, 2.0), (2, 2.0)]})
    assert chart("small", {"a": [(1, 0.0), (2, 3e-6)]}, percent=True)


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
