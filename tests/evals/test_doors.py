"""Evaluations through the command, of data as it lies in files."""

import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipjax
from clipjax.checkpoint import digest
from clipjax.data.sources import make_source


@pytest.mark.slow
def test_groups_are_the_same_of_a_table_a_folder_and_parquet(
    command, cache, tiny_checkpoint, save_picture, tmp_path
):
    rows = []
    for number in range(12):
        name, region = ("cat", "dog")[number % 2], ("Asia", "Africa", "Europe")[number % 3]
        path = tmp_path / "set" / name / region / f"{number}.png"
        save_picture(path, number)
        rows.append({"image": str(path.relative_to(tmp_path)), "class": name, "region": region})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    how = "?label_field=class&group_field=region"
    specs = [f"jsonl:{tmp_path}/t.jsonl{how}", f"parquet:{tmp_path}/t.parquet{how}"]
    specs.append(f"folder:{tmp_path}/set?group_field=region")
    flags = [f"--zero_shot={spec}" for spec in specs]
    found, drawn = tmp_path / "found.json", tmp_path / "pictures"
    shown = (f"--json={found}", f"--page={tmp_path}/found.html", f"--pictures={drawn}")
    done = command("eval", f"--checkpoint={tiny_checkpoint}", *flags, *shown)
    assert done.code == 0, done.err
    assert "Top-1 by region" in (tmp_path / "found.html").read_text()
    assert len(list(drawn.glob("*_by_region.svg"))) == 3
    entries = list(json.loads(found.read_text())["evaluations"].values())
    assert len(entries) == 3 and entries[0]["metrics"]["num_examples"] == 12
    groups = entries[0]["tables"]["groups"]["region"]
    assert {name: group["examples"] for name, group in groups.items()} == dict.fromkeys(
        ("Africa", "Asia", "Europe"), 4
    )
    for entry in entries[1:]:
        # A folder has another order, in which sums of floats differ.
        assert entry["metrics"] == pytest.approx(entries[0]["metrics"], abs=1e-6)
        for table in ("groups", "per_class", "confusion"):
            assert entry["tables"][table] == entries[0]["tables"][table]


def test_prompts_of_each_class_and_classes_that_are_several_names(
    command, cache, tiny_checkpoint, save_picture, tmp_path
):
    for number in range(6):
        save_picture(
            tmp_path / "set" / ("alarm_clock", "wok", "hat")[number % 3] / f"{number}.png", number
        )
    files = {
        "names.json": ["analog clock", "digital clock", "wok", "hat"],
        "map.json": {"alarm clock": ["analog clock", "digital clock"], "wok": ["wok"]},
        "cupl.json": {
            "analog clock": ["A round face with two hands.", "a photo of a {}"],
            "digital clock": ["Red digits."],
            "wok": ["A wide pan."],
            "hat": ["It is worn on the head."],
        },
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    flags = [
        f"--zero_shot=folder:{tmp_path}/set",
        f"--class_names={tmp_path}/names.json",
        f"--eval_field=zero_shot.class_map={tmp_path}/map.json",
        f"--json={tmp_path}/found.json",
    ]
    prompts = f"--templates={tmp_path}/cupl.json"
    done = command("eval", f"--checkpoint={tiny_checkpoint}", *flags, prompts)
    assert done.code == 0, done.err
    (entry,) = json.loads((tmp_path / "found.json").read_text())["evaluations"].values()
    assert (entry["metrics"]["num_examples"], entry["metrics"]["num_classes"]) == (4, 4)
    assert entry["left_out"] == {"of a class that class_map does not have": 2}
    assert "cupl.json" in entry["templates"]["from"]
    del files["cupl.json"]["hat"]
    (tmp_path / "cupl.json").write_text(json.dumps(files["cupl.json"]))
    done = command("eval", f"--checkpoint={tiny_checkpoint}", *flags, prompts)
    assert done.code == 1 and "'hat'" in done.err and "Traceback" not in done.err


def test_what_is_no_set_or_no_model_is_one_clear_error(
    command, cache, tiny_checkpoint, save_picture, tmp_path
):
    for number in range(4):
        save_picture(tmp_path / "set" / ("cat", "dog")[number % 2] / f"{number}.png", number)
    spec = f"folder:{tmp_path}/set"

    def told(*flags, checkpoint=tiny_checkpoint):
        done = command("eval", f"--checkpoint={checkpoint}", *flags)
        assert done.code == 1 and "Traceback" not in done.err, done.err
        return done.err

    # A set that nobody knows, or whose pictures nobody has.
    assert "unknown kind 'nothing'" in told("--zero_shot=nothing:test")
    assert "its pictures are where you have them" in told("--zero_shot=food101")
    assert "nearest are food101" in told(f"--zero_shot={spec}", "--class_names=fod101")
    # A class without pictures.
    (tmp_path / "set" / "bird").mkdir()
    assert "1 class folders hold no picture, e.g. bird" in told(f"--zero_shot={spec}")
    (tmp_path / "set" / "bird").rmdir()
    # Pictures that stand twice in a file of labels.
    rows = ["image,class", "set/cat/0.png,cat", "set/dog/1.png,dog", "./set/cat/0.png,dog"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    table = f"csv:{tmp_path}/t.csv?label_field=class"
    error = told(f"--zero_shot={table}")
    assert "1 rows name the picture of another row, 0 allowed (max_bad): lines 2 and 4" in error
    assert "with the classes 'cat' and 'dog'" in error
    probe = f"--eval_field=knn.train={table}"
    assert "knn on folder" in (error := told(f"--eval=knn={spec}", probe)) and "lines 2" in error
    (tmp_path / "l.json").write_text('{"0": [0], "0": [1]}')
    labels = f"--eval_field=zero_shot.label_file={tmp_path}/l.json"
    assert "the key '0' stands twice" in told(f"--zero_shot={spec}", labels)
    # Pictures of one name, which a file of labels goes by.
    save_picture(tmp_path / "set" / "dog" / "0.png", 0)
    (tmp_path / "l.json").write_text('{"0": [0], "1": [1], "2": [0], "3": [1]}')
    assert "2 pictures are called '0'" in told(f"--zero_shot={spec}", labels)
    # Pictures that do not decode.
    (tmp_path / "set" / "dog" / "0.png").write_bytes(b"none")
    error = told(f"--zero_shot={spec}")
    assert "1 image(s) or text(s) cannot be used, 0 allowed (max_bad): dog/0.png" in error
    # No checkpoint, one without its contract, and a tokenizer of another model.
    assert "it holds cat, dog" in told(f"--zero_shot={spec}", checkpoint=tmp_path / "set")
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    (manifest,) = other.rglob("manifest.json")
    fields = json.loads(manifest.read_text())
    del fields["contract"], fields["manifest_sha256"]
    manifest.write_text(json.dumps({**fields, "manifest_sha256": digest(fields)}))
    error = told(f"--zero_shot={spec}", checkpoint=other)
    assert "contract" in error and str(manifest) in error, error
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    assert "leave it out" in told(f"--zero_shot={spec}", f"--tokenizer={vocabulary}")


def shown_in(page):
    """The alternative texts of the pictures, by the title of their card."""
    cards = re.findall(r'<section class="card group".*?</section>', page.read_text(), re.S)
    return {re.search("<h3>(.*?)</h3>", c)[1]: re.findall('alt="(.*?)"', c) for c in cards}


@pytest.mark.slow
def test_the_page_shows_pictures_that_were_called_by_another_name(
    command, cache, tiny_checkpoint, save_picture, tmp_path
):
    for number in range(5):  # each under both names: one of them is right, and the other is wrong
        for name in ("cat", "dog"):
            save_picture(tmp_path / "set" / name / f"{number}.png", number)
    found, page = tmp_path / "found.json", tmp_path / "found.html"
    flags = [f"--checkpoint={tiny_checkpoint}", f"--zero_shot=folder:{tmp_path}/set"]
    more = ("--retrieval=synthetic:24", f"--json={found}", f"--page={page}")
    done = command("eval", *flags, *more)
    assert done.code == 0, done.err
    (queries,) = (
        entry["tables"]["queries"]
        for entry in json.loads(found.read_text())["evaluations"].values()
        if "queries" in entry["tables"]
    )
    own = re.findall('<figure class=own><img [^>]*alt="([^;]+);', page.read_text())
    source = make_source("synthetic:24")
    assert own == [source[query["row"]]["key"] for query in queries] != []
    encoder = clipjax.load(tiny_checkpoint)
    images = [Image.open(tmp_path / "set" / "cat" / f"{number}.png") for number in range(5)]
    answers = [a[0][0] for a in encoder.classify(images, ["cat", "dog"], templates="simple")]
    other = {"cat": "dog", "dog": "cat"}
    wrong = {}
    for number, answer in enumerate(answers):
        wrong.setdefault(answer, []).append(f"{other[answer]}/{number}.png")
    shown = shown_in(page)
    assert shown.keys() == {f"{other[a]} called {a}: {len(keys)} of 5" for a, keys in wrong.items()}
    for answer, keys in wrong.items():
        pictures = shown[f"{other[answer]} called {answer}: {len(keys)} of 5"]
        assert len(pictures) == min(len(keys), 4)
        assert {text.split(";")[0] for text in pictures} <= {*keys}
    assert command("eval", *flags, f"--json={found}").code == 0
    (entry,) = json.loads(found.read_text())["evaluations"].values()
    assert "confusion" in entry["tables"] and "confused" not in entry["tables"]
