"""`clipjax eval` and `classify` on data whose names mislead."""

import json
import re

import numpy as np
from PIL import Image

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "a_green": (0, 255, 0)}


def make_pictures(root, names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        pixels = np.full((32, 32, 3), list(COLOURS.values())[number % 3], np.uint8)
        Image.fromarray(pixels).save(root / name / "1.png")


def test_names_of_datasets_and_classes_are_what_they_say(clipjax, reference, tmp_path):
    make_pictures(tmp_path / "x" / "a", ["red", "blue"])
    make_pictures(tmp_path / "x_a", ["red", "blue", "a_green"])
    found = tmp_path / "deep" / "found.json"
    done = clipjax(
        "eval",
        "--checkpoint",
        reference,
        f"--zero_shot=folder:{tmp_path}/x/a,folder:{tmp_path}/x_a",
        "--zero_shot=synthetic:128",
        f"--json={found}",
    )
    assert "templates: the run's: 'plain'" in done.stderr
    results = json.loads(found.read_text())
    entries = results["evaluations"]
    folders = {e["spec"].partition(":")[2]: prefix for prefix, e in entries.items()}
    assert results[f"{folders[f'{tmp_path}/x/a']}/num_classes"] == 2
    assert results[f"{folders[f'{tmp_path}/x_a']}/num_classes"] == 3
    trained = json.loads((reference / "results.json").read_text())
    key = "zero_shot/synthetic_128"
    assert results[f"{key}/top1"] == trained[f"{key}/top1"]
    assert entries[key]["templates"]["sha256"] == trained["evaluations"][key]["templates"]["sha256"]
    for name in ("checkpoint_sha256", "tokenizer", "step"):
        assert results[name] == trained[name]
    assert re.fullmatch("[0-9a-f]{64}", results["checkpoint_sha256"])
    page = (reference / "report.html").read_text(encoding="utf-8")
    for told in (results["checkpoint_sha256"], entries[key]["data_fingerprint"]):
        assert told[:16] in page


def test_what_cannot_be_written_is_said_before_the_work(clipjax, reference, tmp_path):
    flags = ("--zero_shot=synthetic:128", f"--json={tmp_path}")
    done = clipjax("eval", "--checkpoint", reference, *flags, check=1)
    assert "is a folder" in done.stderr
    assert "top1" not in done.stderr
