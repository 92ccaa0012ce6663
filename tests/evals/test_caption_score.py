import json

import numpy as np
import pytest
from stand_ins import Source, evaluation, make_params, mesh_of, picture, unit

from clipjax.evals import CaptionScore


def make_source():
    """Pictures 0 to 10 with captions 3n and 3n + 1; the candidate of each is 3n + 2."""
    return Source([{"image": picture(n), "text": (f"{3 * n}", f"{3 * n + 1}")} for n in range(11)])


def by_hand(params):
    """arXiv:2104.08718, section 3, written out."""
    image, text = unit(params["image"]), unit(params["text"])
    plain, with_references = [], []
    for n in range(11):
        c, refs = text[3 * n + 2], text[[3 * n, 3 * n + 1]]
        clip_s, near = 2.5 * max(c @ image[n], 0), max(0, (refs @ c).max())
        plain.append(clip_s)
        with_references.append(2 / (1 / clip_s + 1 / near) if clip_s and near else 0.0)
    return plain, with_references


def test_scores_are_those_of_the_definition(tmp_path):
    candidates, output = tmp_path / "candidates.json", tmp_path / "scores.jsonl"
    candidates.write_text(json.dumps({f"picture {n}": f"{3 * n + 2}" for n in range(11)}))
    options = {"candidates": str(candidates), "output": str(output)}
    run = evaluation(CaptionScore, make_source(), mesh_of(8), **options)
    seen = []
    run.tokenizer = lambda texts, plain=run.tokenizer: seen.extend(texts) or plain(texts)
    found, (plain, references) = run.run(make_params()), by_hand(make_params())
    assert found["clipscore"] == pytest.approx(np.mean(plain), rel=1e-5)
    assert found["refclipscore"] == pytest.approx(np.mean(references), rel=1e-5)
    assert 0 in references and max(plain) > 0 and found["num_examples"] == 11
    assert all(text.startswith("A photo depicts ") for text in seen)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["clipscore"] for line in lines] == pytest.approx(plain, rel=1e-5)
    assert [line["refclipscore"] for line in lines] == pytest.approx(references, rel=1e-5)
    assert lines[2]["caption"] == "8" and lines[2]["key"] == "picture 2"
    for change, message in (
        ({"picture 4": None}, "candidates has no caption of picture 4; it is looked for as"),
        ({"no": "7"}, "1 of 12 candidates are of no picture of the set, e.g. 'no'; 0 allowed"),
        ({"picture 4": " "}, "a text that is not empty"),
    ):
        given = json.loads(candidates.read_text()) | change
        other = tmp_path / "other.json"
        other.write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
        with pytest.raises(ValueError, match=message):
            asked = {"candidates": str(other)}
            evaluation(CaptionScore, make_source(), mesh_of(1), **asked).run(make_params())


def test_captions_are_scored_by_the_command(evaluate, tmp_path, save_picture):
    names = ["a.png", "b.png"]
    for number, name in enumerate(names):
        save_picture(tmp_path / name, number)
    rows = "".join(f"{name},a picture\n" for name in names)
    (tmp_path / "t.csv").write_text(f"image,text\n{rows}")
    output = tmp_path / "scores.jsonl"
    field = f"--eval_field=caption_score.output={output}"
    found, _ = evaluate("caption_score", f"csv:{tmp_path}/t.csv", field)
    scores = [json.loads(line)["clipscore"] for line in output.read_text().splitlines()]
    assert found["clipscore"] == pytest.approx(np.mean(scores)) and found["num_examples"] == 2
    assert 0 <= min(scores) <= max(scores) <= 2.5
    done = evaluate(
        "caption_score", f"csv:{tmp_path}/t.csv", f"--eval_field=caption_score.output={tmp_path}"
    )
    assert done.code == 1 and "is a folder" in done.err and "Traceback" not in done.err
