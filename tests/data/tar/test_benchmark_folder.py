"""Datasets in CLIP_benchmark's layout: shards by their number, and the files beside the split."""

import io

import numpy as np
import pytest
from archives import png, tar
from buckets import bucket
from data_command import run

from clipjax.data import make_source
from clipjax.evals import Retrieval, ZeroShot

pytestmark = pytest.mark.usefixtures("cache")
NAMES = ["cat", "#1 dog", "{c} owl"]
TEMPLATES = ["a photo of a {c}.", "{c}"]


def dataset(root, *, shards=11, split="test", kind=None, member=lambda i: (f"{i % 3}", "cls")):
    folder = root / split
    folder.mkdir(parents=True)
    for number in range(shards):
        content, extension = member(number)
        key = f"s{number:07d}"
        members = [(f"{key}.png", png(number)), (f"{key}.{extension}", content.encode())]
        tar(folder / f"{number}.tar", members)
    (folder / "nshards.txt").write_text(f"{shards}\n")
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n", "utf-8")
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    if kind:
        (root / "dataset_type.txt").write_text(f"{kind}\n")
    return root


def test_a_split_is_read_as_it_is_written(tmp_path, monkeypatch):
    root = dataset(tmp_path)
    source = make_source(f"tar:{root}/test")
    assert source.class_names == tuple(NAMES) and source.templates == tuple(TEMPLATES)
    # In the order of their numbers: 2 before 10.
    assert [source[i]["key"].split("/")[0] for i in range(11)] == [f"{i}.tar" for i in range(11)]
    assert [source[i]["label"] for i in (0, 1, 10)] == [0, 1, 1]
    assert source[10]["text"] == "#1 dog" and source[10]["image"] == png(10)
    pattern = make_source(f"tar:{root}/test/*.tar")
    assert (pattern.class_names, pattern.templates) == (source.class_names, source.templates)
    given = make_source(f"tar:{root}/test/?class_names=a,b,c")
    assert given.class_names == ("a", "b", "c")
    # Names that are the same decide before their order, and others need as many.
    (root / "other.txt").write_text("a dog\n{c} owl\n#1 dog\nCat\n")
    given = make_source(f"tar:{root}/test?class_names={root}/other.txt")
    assert [(given[i]["label"], given[i]["text"]) for i in range(3)] == [
        (3, "Cat"),
        (2, "#1 dog"),
        (1, "{c} owl"),
    ]
    assert given.fingerprint() != source.fingerprint()
    with pytest.raises(ValueError, match="3 classes, class_names has 1000 names"):
        make_source(f"tar:{root}/test?class_names=imagenet")
    (root / "test" / "scores.txt").write_text("x")  # other files are not looked at
    monkeypatch.chdir(root / "test")
    assert make_source("tar:.").class_names == tuple(NAMES)


def test_shards_that_are_not_those_it_says(tmp_path):
    root = dataset(tmp_path)
    (root / "test" / "3.tar").rename(root / "test" / "11.tar")
    message = r"11 shards, 0\.tar to 10\.tar: 1 are missing, e\.g\. 3\.tar; 1 are others, e\.g\. 11"
    with pytest.raises(ValueError, match=message):
        make_source(f"tar:{root}/test")
    (root / "test" / "nshards.txt").write_text("all")
    with pytest.raises(ValueError, match="says 'all', expected the number"):
        make_source(f"tar:{root}/test")
    (root / "test" / "nshards.txt").unlink()
    with pytest.raises(ValueError, match=r"is a folder: write .*/test/\*\.tar"):
        make_source(f"tar:{root}/test")


def test_files_beside_a_split_that_cannot_be_meant(tmp_path):
    root = dataset(tmp_path, shards=1, kind="Boxes")
    with pytest.raises(ValueError, match=r"dataset_type\.txt says 'boxes'; what can be read"):
        make_source(f"tar:{root}/test")
    (root / "dataset_type.txt").unlink()
    with pytest.raises(ValueError, match=rf"name a split, tar:{root}/test"):
        make_source(f"tar:{root}")
    (root / "classnames.txt").write_text("cat\n\nowl\n")
    with pytest.raises(ValueError, match=r"classnames\.txt, line 2 is blank"):
        make_source(f"tar:{root}/test")
    (root / "classnames.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"classnames\.txt holds no class names"):
        make_source(f"tar:{root}/test")
    (root / "classnames.txt").write_bytes("Straße".encode("latin1"))
    with pytest.raises(ValueError, match=r"classnames\.txt, line 1 is not UTF-8"):
        make_source(f"tar:{root}/test")


def test_a_dataset_serves_the_task_that_it_is_for(tmp_path):
    common = dict.fromkeys(
        ("encode_image_fn", "encode_text_fn", "preprocess", "tokenizer", "mesh"), None
    )
    for kind in ("classification", None):
        classes = dataset(tmp_path / f"classes {kind}", shards=2, kind=kind)
        with pytest.raises(ValueError, match=r"for classification, .*evaluate it by zero_shot"):
            Retrieval(source=make_source(f"tar:{classes}/test"), **common)
    captions = dataset(tmp_path / "b", kind="retrieval", member=lambda i: ("a cat", "txt"))
    source = make_source(f"tar:{captions}/test")
    for names in (None, ("a", "b")):
        with pytest.raises(ValueError, match=r"for retrieval, .*evaluate it by retrieval"):
            ZeroShot(source=source, class_names=names, **common)
    assert len(Retrieval(source=source, **common).source) == 11


def test_in_a_bucket(tmp_path, monkeypatch):
    root = dataset(tmp_path, shards=2)
    paths = [path for path in root.rglob("*") if path.is_file()]
    files = {f"b/d/{path.relative_to(root)}": path.read_bytes() for path in paths}
    with bucket(monkeypatch, files):
        source = make_source("tar:memory://b/d/test")
        assert source.class_names == tuple(NAMES) and source.templates == tuple(TEMPLATES)
        assert [source[i]["label"] for i in range(len(source))] == [0, 1]


def test_commands_take_the_folder_too(tmp_path, capsys):
    root = dataset(tmp_path, shards=2)
    assert run("index", f"tar:{root}/test") == 0
    assert "indexed 2 shards" in capsys.readouterr().out
    assert run("check", f"tar:{root}/test") == 0
    assert "checked 2 parts with 2 examples; damaged: none" in capsys.readouterr().out


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, np.array(values))
    return buffer.getvalue()


def with_vectors(root, vectors, *, kind=None, labels=True):
    dataset(root, shards=1, kind=kind)
    members = []
    for number, vector in enumerate(vectors):
        members += [(f"s{number}.png", png(number)), (f"s{number}.npy", vector)]
        members += [(f"s{number}.cls", b"1")] if labels else []
    tar(root / "test" / "0.tar", members)
    return f"tar:{root}/test"


def test_several_classes_of_a_record(tmp_path):
    spec = with_vectors(
        tmp_path, [npy([1, 0, 1]), npy([0, 0, 0]), npy([1, 1])], kind="multilabel", labels=False
    )
    source = make_source(spec)
    assert (source.several, source.task) == (True, "zero_shot")
    assert (source[0]["labels"], source[0]["text"]) == ((0, 2), "cat, {c} owl")
    assert source[1]["labels"] == ()
    with pytest.raises(ValueError, match=r"s2: the \.npy has 2 marks for 3 classes"):
        source[2]
    # Other names for the classes find their places.
    (tmp_path / "other.txt").write_text("{c} owl\nx\ncat\n#1 dog\n")
    assert make_source(f"{spec}?class_names={tmp_path}/other.txt")[0]["labels"] == (2, 0)
    with pytest.raises(ValueError, match="unreadable"):
        make_source(with_vectors(tmp_path / "b", [b"x"], kind="multilabel"))[0]


def test_metadata_in_the_layout_of_wilds(tmp_path):
    spec = with_vectors(tmp_path, [npy([3, 2012, 1]), npy([5, 2016, 1])])
    source = make_source(f"{spec}?group_field=region,year")
    assert source.group_names == ("region", "year")
    assert source[1]["groups"] == {"region": "5", "year": "2016"} and source[1]["label"] == 1
    # Numbers of more than six digits stay apart.
    spec_of_ids = with_vectors(tmp_path / "ids", [npy([1234567]), npy([1234568])])
    source_of_ids = make_source(f"{spec_of_ids}?group_field=id")
    assert [source_of_ids[i]["groups"]["id"] for i in (0, 1)] == ["1234567", "1234568"]
    with pytest.raises(ValueError, match="extension 'npy' is unknown"):
        make_source(spec)
