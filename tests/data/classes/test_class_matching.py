import hashlib
import json
from importlib import resources

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.data import SampleError, make_source
from clipjax.data.classes.matching import match_classes
from clipjax.data.classes.named_lists import load_class_names, load_imagenet_ids

IMAGENET = load_class_names("imagenet")


def test_imagenets_ids_are_whole_and_in_the_order_of_its_names():
    ids = load_imagenet_ids()
    assert len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    # First, last, and some between, known from elsewhere: tench, toilet paper, Newfoundland, crane.
    by_id = dict(zip(ids, IMAGENET, strict=True))
    assert (by_id[ids[0]], ids[0]) == ("tench", "n01440764")
    assert (by_id[ids[-1]], ids[-1]) == ("toilet paper", "n15075141")
    assert by_id["n02111277"] == "Newfoundland dog"
    assert by_id["n02012849"] == "crane bird"
    folder = resources.files("clipjax.data") / "prompts"
    digest = hashlib.sha256((folder / "imagenet_wnids.json").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text(encoding="utf-8")


def test_names_decide_before_order():
    given = ["dog", "tabby cat", "cow"]
    assert match_classes(["Cow", "tabby_cat"], given, "x") == ([2, 1], "name")
    assert match_classes(["cow", "dog", "Tabby-Cat"], given, "x") == ([2, 0, 1], "name")
    assert match_classes(given, given, "x") == ([0, 1, 2], "name")
    # As they are written, where they differ in nothing else.
    assert match_classes(["t-shirt", "t_shirt"], ["t_shirt", "t-shirt"], "x") == ([1, 0], "name")
    # No name is in the list, or none at another place: equally many are taken in order.
    assert match_classes(["hen", "ewe", "ram"], given, "x") == ([0, 1, 2], "order")
    assert match_classes(["dog", "tabby", "cow"], given, "x") == ([0, 1, 2], "order")


@pytest.mark.parametrize("given", [["fish", "dog", "bird"], ["Dog", "Fish", "Tabby"]])
def test_a_name_at_another_place_forbids_order(given):
    with pytest.raises(ValueError, match=r"at place \d, where class_names has .* 'cat', 'dog'"):
        match_classes(["cat", "dog", "fish"], given, "x")


def test_ids_of_imagenet_are_its_labels_whole_or_some():
    ids = load_imagenet_ids()
    assert match_classes(ids, IMAGENET, "x") == (list(range(1000)), "wordnet")
    some = [ids[7], ids[300], ids[999]]
    assert match_classes(some, IMAGENET, "x") == ([7, 300, 999], "wordnet")
    # In a list of their own they are in order.
    assert match_classes(some, ["a", "b", "c"], "x") == ([0, 1, 2], "order")
    with pytest.raises(ValueError, match=r"1 of 2 classes .* 'n00000001'"):
        match_classes(["n00000001", ids[3]], IMAGENET, "x")


@pytest.mark.parametrize(
    ("found", "given", "words"),
    [
        ([f"folder {i}" for i in range(10)], IMAGENET, "x has 10 classes, class_names has 1000"),
        (["a", "b"], ["a"], "1 are not, e.g. 'b'"),
        (["missile", "tench"], IMAGENET, "'missile' 2 times"),
        (["1", "2", "3"], ["a", "b", "c"], "first_label=1"),
    ],
)
def test_what_fits_neither_way_is_an_error(found, given, words):
    with pytest.raises(ValueError, match=words):
        match_classes(found, given, "x")


def make_folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(name.encode())


def test_the_option_of_a_spec_finds_folders_by_name_and_by_id(tmp_path):
    make_folders(tmp_path / "named", ["tabby_cat", "dog"])
    (tmp_path / "names.json").write_text(json.dumps(["cow", "tabby cat", "dog"]))
    source = make_source(f"folder:{tmp_path}/named?class_names={tmp_path}/names.json")
    assert [(source[i]["label"], source[i]["text"]) for i in range(2)] == [
        (2, "dog"),
        (1, "tabby cat"),
    ]
    assert list(source.labels()) == [2, 1]
    make_folders(tmp_path / "ids", ["n15075141", "n01440764"])
    source = make_source(f"folder:{tmp_path}/ids?class_names=imagenet")
    assert [source[i]["text"] for i in range(2)] == ["tench", "toilet paper"]
    assert [source[i]["label"] for i in range(2)] == [0, 999]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_cells_of_a_table_are_classes_by_name_and_by_id(tmp_path, kind):
    def labels(cells, option):
        rows = [("1.png", "a caption", cell) for cell in cells]
        lines = [",".join(row) for row in (("image", "text", "kind"), *rows)]
        (tmp_path / "t.csv").write_text("\n".join(lines))
        columns = dict(zip(("image", "text", "kind"), zip(*rows, strict=True), strict=True))
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        source = make_source(f"{kind}:{tmp_path}/t.{kind}?label_field=kind&class_names={option}")
        return [source[i]["label"] for i in range(len(cells))], source.matched

    (tmp_path / "1.png").write_bytes(b"a picture")
    assert labels(["Tabby_Cat", "dog"], "cow,tabby cat,dog") == ([1, 2], "name")
    assert labels(["n15075141", "n01440764", "tench"], "imagenet") == ([999, 0, 0], "wordnet")
    assert labels(["1", "cow"], "cow,dog") == ([1, 0], "number")
    for cell, option in (("n01440764", "cow,dog"), ("cow", "cow,dog,cow")):
        with pytest.raises(SampleError, match=cell):
            labels([cell], option)
