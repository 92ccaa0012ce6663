"""`clipjax eval` and `classify` on data whose names mislead."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipjax.cli.specs import split_specs
from clipjax.evaluate import evaluate_checkpoint

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "a_green": (0, 255, 0)}


def make_shard(path, label):
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(picture, "PNG")
    with tarfile.open(path, "w") as shard:
        for name, content in (("0.png", picture.getvalue()), ("0.cls", b"%d" % label)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def make_pictures(root, names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        pixels = np.full((32, 32, 3), list(COLOURS.values())[number % 3], np.uint8)
        Image.fromarray(pixels).save(root / name / "1.png")


def test_names_of_datasets_and_classes_are_what_they_say(clipjax, reference, tmp_path):
    make_pictures(tmp_path / "x" / "a", ["red", "blue"])
    make_pictures(tmp_path / "x_a", ["red", "blue", "a_green"])
    (tmp_path / "x_a" / "red" / "2.png").write_bytes(b"no picture")
    for number in range(2):
        make_shard(tmp_path / f"000{number}.tar", number)
    shards = f"tar:{tmp_path}/{{0000..0001}}.tar?class_names=red,blue,green"
    found = tmp_path / "deep" / "found.json"
    done = clipjax(
        "eval",
        "--checkpoint",
        reference,
        f"--zero_shot=folder:{tmp_path}/x/a,{shards},folder:{tmp_path}/x_a",
        "--zero_shot=synthetic:128",
        "--retrieval=synthetic:64",
        "--classes=present",
        "--templates=",
        "--class_names=",
        "--max_bad=1",
        f"--json={found}",
    )
    assert "templates: the run's: 'plain'" in done.stderr
    results = json.loads(found.read_text())
    assert 0 <= results["retrieval/synthetic_64/image_retrieval_recall@5"] <= 1
    entries = results["evaluations"]
    folders = {e["spec"].partition(":")[2]: prefix for prefix, e in entries.items()}
    for spec, pictures, classes in (
        (f"{tmp_path}/x/a", 2, 2),
        (f"{tmp_path}/x_a", 3, 3),
        (shards.partition(":")[2], 2, 2),
    ):
        counts = [results[f"{folders[spec]}/num_{what}"] for what in ("examples", "classes")]
        assert counts == [pictures, classes], spec
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


@pytest.mark.parametrize(
    ("given", "specs"),
    [
        (["tar:a/{0000..0003}.tar,folder:x"], ["tar:a/{0000..0003}.tar", "folder:x"]),
        (["tar:{a,b}.tar, csv:x"], ["tar:{a,b}.tar", "csv:x"]),
        (["csv:a?class_names=cat,dog,folder:x"], ["csv:a?class_names=cat,dog", "folder:x"]),
        (["tfds:a:train[:10%,20%:]", "folder:x,y"], ["tfds:a:train[:10%,20%:]", "folder:x,y"]),
        (["folder:gs://b/a,folder:s3://c/d"], ["folder:gs://b/a", "folder:s3://c/d"]),
        (
            ['mix:[{"spec": "tar:a"}, {"spec": "csv:b"}]'],
            ['mix:[{"spec": "tar:a"}, {"spec": "csv:b"}]'],
        ),
        ([""], []),
    ],
)
def test_commas_between_specs_are_told_from_those_in_them(given, specs):
    assert split_specs(given) == specs
    with pytest.raises(ValueError, match="not closed"):
        split_specs([*given, "tar:{0..1.tar,folder:x"])


def test_one_evaluation_twice_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"--zero_shot synthetic:8 is given 2 times; keep one"):
        evaluate_checkpoint(tmp_path, zero_shot=["synthetic:8", "synthetic:9", "synthetic:8"])


def test_what_cannot_be_written_is_said_before_the_work(command, reference, tmp_path):
    done = command(
        "eval", f"--checkpoint={reference}", "--zero_shot=synthetic:128", f"--json={tmp_path}"
    )
    assert done.code == 1 and "is a folder" in done.err
    assert "top1" not in done.out + done.err


@pytest.mark.slow  # tests/evals/test_golden_figures.py has that package's figures
def test_a_dataset_of_clip_benchmark_is_evaluated_as_it_is(clipjax, reference, tmp_path):
    root, plain = tmp_path / "wds", tmp_path / "plain"
    (root / "test").mkdir(parents=True)
    names = ["red one", "#blue, bright", "green"]
    (root / "classnames.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    templates = "a {c} picture\n{c}\n"
    (root / "zeroshot_classification_templates.txt").write_text(templates, encoding="utf-8")
    (root / "test" / "nshards.txt").write_text("2\n")
    make_pictures(plain, ["00", "01", "02"])
    for shard, labels in enumerate(((2, 0), (1,))):
        with tarfile.open(root / "test" / f"{shard}.tar", "w") as archive:
            for label in labels:
                picture = (plain / f"0{label}" / "1.png").read_bytes()
                for suffix, content in (("png", picture), ("cls", b"%d" % label)):
                    entry = tarfile.TarInfo(f"s{label:07d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    found = tmp_path / "found.json"
    flags = (f"--zero_shot=tar:{root}/test", f"--json={found}")
    done = clipjax("eval", "--checkpoint", reference, *flags)
    assert "templates: the dataset's own" in done.stderr
    (prefix,) = json.loads(found.read_text())["evaluations"]
    expected = numbers_of(json.loads(found.read_text()), prefix)
    assert expected["num_classes"] == expected["num_examples"] == 3
    # A folder of the same pictures, and prompts of each class, as the templates make them.
    prompts = {name: [t.replace("{c}", name) for t in templates.split("\n")[:2]] for name in names}
    (tmp_path / "prompts.json").write_text(json.dumps({"mine": prompts}), encoding="utf-8")
    (tmp_path / "names.json").write_text(json.dumps(names), encoding="utf-8")
    again = evaluate_checkpoint(
        reference,
        zero_shot=[f"folder:{plain}?class_names={tmp_path}/names.json"],
        templates=f"{tmp_path}/prompts.json:mine",
    )
    (prefix,) = again["evaluations"]
    assert numbers_of(again, prefix) == expected
    assert again["evaluations"][prefix]["class_names"]["matched"] == "number"


def test_names_are_matched_as_the_results_say_or_not_at_all(reference, tmp_path, caplog):
    """Pictures of one colour each: numbers are equal where each class has its own name."""
    make_pictures(tmp_path / "d", ["blue", "green", "red"])
    spec = f"folder:{tmp_path}/d"
    own = evaluate_checkpoint(reference, zero_shot=[spec])
    (prefix,) = own["evaluations"]
    assert own["evaluations"][prefix]["class_names"]["matched"] is None
    half = evaluate_checkpoint(reference, zero_shot=[spec], dtype="bfloat16")
    assert half["dtype"] == "bfloat16" and "dtype" not in own  # float32
    assert half[f"{prefix}/ece"] == pytest.approx(own[f"{prefix}/ece"], abs=0.02)
    assert half[f"{prefix}/ece"] != own[f"{prefix}/ece"]  # what was asked for was done
    with caplog.at_level("INFO"):
        found = evaluate_checkpoint(
            reference, zero_shot=[spec], class_names=["Red", "Blue", "Green"]
        )
    assert numbers_of(found, prefix) == numbers_of(own, prefix)
    assert found["evaluations"][prefix]["class_names"]["matched"] == "name"
    assert "class names: matched by name" in caplog.text
    with pytest.raises(ValueError, match=r"'red' at place 2, .* 'red' at place 0"):
        evaluate_checkpoint(reference, zero_shot=[spec], class_names=["red", "green", "azure"])


def test_a_label_without_a_class_is_no_bad_picture_on_any_route(reference, tmp_path, caplog):
    names = ["red", "blue", "green"]
    make_pictures(tmp_path / "d", ["1", "2", "3"])
    rows = "".join(f"d/{label}/1.png,{label}\n" for label in (1, 2, 3))
    (tmp_path / "t.csv").write_text(f"image,label\n{rows}", encoding="utf-8")
    for label in (1, 2, 3):
        make_shard(tmp_path / f"{label}.tar", label)
    table, option = f"csv:{tmp_path}/t.csv?label_field=label", f"class_names={','.join(names)}"
    for spec, given in (
        (f"tar:{tmp_path}/*.tar?{option}", None),
        (f"tar:{tmp_path}/*.tar", names),
        (f"{table}&{option}", None),
        (table, names),
        (f"folder:{tmp_path}/d?{option}", None),
        (f"folder:{tmp_path}/d", names),
    ):
        with pytest.raises(ValueError, match=r"write \?first_label=1"):
            evaluate_checkpoint(reference, zero_shot=[spec], class_names=given, max_bad=4)
    with pytest.raises(ValueError, match=r"the class is '2' of 1 "):
        evaluate_checkpoint(
            reference, retrieval=[f"tar:{tmp_path}/2.tar?class_names=red,"], max_bad=4
        )
    with caplog.at_level("WARNING"):
        results = evaluate_checkpoint(
            reference,
            zero_shot=[f"tar:{tmp_path}/*.tar?first_label=1", f"{table}&first_label=1"],
            class_names=names,
        )
    assert "labels" not in caplog.text
    for prefix, about in results["evaluations"].items():
        assert results[f"{prefix}/num_examples"] == results[f"{prefix}/num_classes"] == 3
        assert about["class_names"]["matched"] == "number"


def numbers_of(results, prefix):
    return {k.removeprefix(f"{prefix}/"): v for k, v in results.items() if k.startswith(prefix)}
