"""Which class a folder's picture is of, and what is no class and no picture."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipjax.data import make_source
from clipjax.data.classes.matching import match_classes

NAMES = tuple(f"name{number}" for number in range(12))


def png():
    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    return out.getvalue()


def folder_of(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png() if name.endswith("png") else b"a caption")
    return f"folder:{root}"


def labels_of(source):
    return {source[i]["key"].partition("/")[0]: source[i]["label"] for i in range(len(source))}


@pytest.mark.parametrize("form", ["{}", "{:03d}"])
def test_folders_that_are_numbers_have_the_names_at_their_numbers(tmp_path, form):
    spec = folder_of(tmp_path, *(f"{form.format(n)}/1.png" for n in range(12)))
    source = make_source({"spec": spec, "class_names": NAMES})
    assert labels_of(source) == {form.format(n): n for n in range(12)}
    assert {source[i]["key"].split("/")[0]: source[i]["text"] for i in range(12)} == {
        form.format(n): f"name{n}" for n in range(12)
    }
    # An evaluation that brings the names finds the folders in the order of their numbers.
    unnamed = make_source(spec)
    assert unnamed.class_names == tuple(form.format(n) for n in range(12))
    assert labels_of(unnamed) == {form.format(n): n for n in range(12)}


def test_numbers_that_count_from_one_are_shifted_when_that_is_said(tmp_path):
    spec = folder_of(tmp_path, *(f"{n}/1.png" for n in range(1, 13)))
    with pytest.raises(ValueError, match=r"from 1 to 12, .*12 names, for 0 to 11: .*first_label=1"):
        make_source({"spec": spec, "class_names": NAMES})
    source = make_source({"spec": f"{spec}?first_label=1", "class_names": NAMES})
    assert labels_of(source) == {str(n): n - 1 for n in range(1, 13)}
    assert len({source.fingerprint(), make_source(spec).fingerprint()}) == 2


@pytest.mark.parametrize(
    "numbers, first, message",
    [
        ((0, 3), None, r"from 0 to 3, 2 in all, e.g. none is 1; there are 12 .*\?first_label=0"),
        ((3, 12), None, "from 3 to 12; 12 names are for 0 to 11"),
        ((0, 3), 1, "from 0 to 3; 12 names are for 1 to 12"),
        (("1", "01"), None, "the classes 01 and 1 are the same number"),
    ],
)
def test_numbers_that_do_not_fit_the_names(tmp_path, numbers, first, message):
    spec = folder_of(tmp_path, *(f"{n}/1.png" for n in numbers))
    with pytest.raises(ValueError, match=message):
        make_source({"spec": spec, "class_names": NAMES, "first_label": first})


def test_absent_numbers_are_fine_where_the_first_is_said(tmp_path):
    spec = folder_of(tmp_path, "3/1.png", "10/1.png")
    source = make_source({"spec": f"{spec}?first_label=0", "class_names": NAMES})
    assert labels_of(source) == {"3": 3, "10": 10} and source.class_names == NAMES


def test_folders_that_are_words_have_no_first_label(tmp_path):
    spec = folder_of(tmp_path, "1st/1.png", "2/1.png")
    for options in ({"class_names": ("a", "b")}, {}):
        with pytest.raises(ValueError, match="first_label=1 is of no use"):
            make_source({"spec": spec, "first_label": 1, **options})


def test_an_evaluation_brings_the_names_of_numbers_that_count_from_one(tmp_path):
    spec = folder_of(tmp_path, *(f"{n}/1.png" for n in range(1, 13)))
    source = make_source(spec)
    with pytest.raises(ValueError, match=r"\?first_label=1"):
        match_classes(source.class_names, NAMES, spec, first_label=source.first_label)
    source = make_source(spec + "?first_label=1")
    found = match_classes(source.class_names, NAMES, spec, first_label=source.first_label)
    assert found == (list(range(12)), "number") and source.class_names[9] == "10"


def test_captions_that_are_beside_no_picture_are_told(tmp_path, caplog):
    make_source(folder_of(tmp_path, "images/1.png", "captions/1.txt"))
    assert "1 .txt are not used: the text is the class's name" in caplog.text


def test_the_class_is_the_first_folder(tmp_path):
    spec = folder_of(tmp_path, "n01/images/1.png", "n02/images/2.png", "n02/3.png")
    source = make_source(spec)
    assert source.class_names == ("n01", "n02")
    assert labels_of(source) == {"n01": 0, "n02": 1}


def test_the_fingerprint_is_another_only_where_the_labels_are(tmp_path):
    def as_before(files):
        digest = hashlib.sha256(f"folder/2/False/{('p', 'q')}".encode())
        for name in files:
            digest.update(f"{name}\0{len(png())}\n".encode())
        return digest.hexdigest()

    for root, files, same in (
        ("plain", ("a/1.png", "b/1.png"), True),
        ("numbers", ("0/1.png", "1/1.png"), True),
        # Their last folders, y and x, were the classes before.
        ("nested", ("a/y/1.png", "b/x/1.png"), False),
    ):
        spec = folder_of(tmp_path / root, *files)
        source = make_source({"spec": spec, "class_names": ("p", "q")})
        assert list(labels_of(source).values()) == [0, 1]
        assert (source.fingerprint() == as_before(files)) is same


def test_one_folder_of_classes_is_not_one_class(tmp_path):
    spec = folder_of(tmp_path, "images/cat/1.png", "images/dog/1.png")
    with pytest.raises(ValueError, match=f"one class folder, images, .*folder:{tmp_path}/images"):
        make_source(spec)
    assert make_source(spec + "/images").class_names == ("cat", "dog")


def test_splits_are_no_classes(tmp_path):
    spec = folder_of(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png", ".x/1.png")
    with pytest.raises(ValueError, match=f"the splits train, val: write .*folder:{tmp_path}/train"):
        make_source(spec)
    assert make_source(spec + "/train").class_names == ("cat", "dog")
    folder_of(tmp_path, "dog/1.png")  # a class called `train` is one among others
    assert make_source(spec).class_names == ("dog", "train", "val")


@pytest.mark.parametrize(
    "names",
    [
        *(("train2017", "val2017"), ("Train", "Valid"), ("test",), ("dev", "test")),
        *(("test", "trainval"), ("extra", "test", "train"), ("train", "unlabeled")),
        *(("eval", "train"), ("train_images", "val_images")),
    ],
)
def test_names_of_splits(tmp_path, names):
    spec = folder_of(tmp_path, *(f"{name}/cat/1.png" for name in names))
    with pytest.raises(ValueError, match=f"holds the splits {', '.join(names)}: write the one"):
        make_source(spec)
    folder_of(tmp_path, "trains/1.png")  # vehicles
    assert "trains" in make_source(spec).class_names


def test_captions_of_splits_are_not_mixed_but_one_split_is_read(tmp_path):
    spec = folder_of(tmp_path, "train/1.png", "train/1.txt")
    assert make_source(spec)[0]["text"] == "a caption"
    folder_of(tmp_path, "test/1.png", "test/1.txt")
    with pytest.raises(ValueError, match="the splits test, train"):
        make_source(spec)


def test_hidden_names_are_skipped_and_counted(tmp_path, caplog):
    hidden = (".ipynb_checkpoints/1.png", "cat/._1.png", "__MACOSX/cat/._1.png", "cat/.x/1.png")
    spec = folder_of(tmp_path, "cat/1.png", "dog/1.png", *hidden)
    source = make_source(spec)
    assert source.class_names == ("cat", "dog") and len(source) == 2
    assert "4 files are not used, as their names or those of their folders are hidden" in (
        caplog.text
    )
    assert len(caplog.records) == 1
    assert make_source(f"{spec}/.ipynb_checkpoints?layout=captions").captions == "lines"  # as named


def test_pictures_with_json_alone_are_not_captioned_by_their_folders(tmp_path):
    spec = folder_of(tmp_path, "00000/1.png", "00000/1.json", "00001/2.png")
    with pytest.raises(ValueError, match=r"a .json and no .txt beside 1 of 2 pictures"):
        make_source(spec)
    assert make_source(spec + "?layout=classes").class_names == ("00000", "00001")
    folder_of(tmp_path, "00000/1.txt")
    assert make_source(spec)[0]["text"] == "a caption"


def test_labels_of_other_sources_say_how_they_are_shifted(tmp_path):
    folder_of(tmp_path, "1.png", "2.png")
    (tmp_path / "t.csv").write_text("image,text,kind\n1.png,a,1\n2.png,b,2\n")
    spec = f"csv:{tmp_path}/t.csv?label_field=kind&class_names=cat,dog"
    with pytest.raises(ValueError, match=r"t.csv calls its classes by .* 1 to 2.*first_label=1"):
        make_source(spec)
    source = make_source(spec + "&first_label=1")
    assert [source[i]["label"] for i in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="first_label=1 is of no use without label_field"):
        make_source(f"csv:{tmp_path}/t.csv?first_label=1")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_names_of_classes_that_no_column_holds_are_refused(tmp_path, kind):
    columns = {"image": ["1.png"], "text": ["a"], "Kind": ["1"]}
    (tmp_path / "t.csv").write_text("image,text,Kind\n1.png,a,1\n")
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    spec = f"{kind}:{tmp_path}/t.{kind}?class_names=cat,dog"
    with pytest.raises(ValueError, match=r"class_names=cat,dog is .* \?label_field=NAME"):
        make_source(spec)
    assert make_source(spec + "&label_field=kind").class_names == ("cat", "dog")


def test_a_class_file_counts_every_line(tmp_path, caplog):
    spec = folder_of(tmp_path / "p", "0/1.png", "1/1.png", "2/1.png")
    names = tmp_path / "names.txt"
    names.write_text("\ufeffthe first\n#one\nlast one\n\n", encoding="utf-8")
    source = make_source(f"{spec}?class_names={names}")
    assert source.class_names == ("the first", "#one", "last one") and not caplog.text
    names.write_text("a\n\nb\nc", encoding="utf-8")
    with pytest.raises(ValueError, match=r"names.txt, line 2 is blank"):
        make_source(f"{spec}?class_names={names}")
    listed = tmp_path / "names.json"
    listed.write_text('["a", " ", "b"]')
    with pytest.raises(ValueError, match=r"names.json, entry 2 is blank"):
        make_source(f"{spec}?class_names={listed}")
    with pytest.raises(ValueError, match=r"'class_names=a,,b' in .* holds an empty entry"):
        make_source(f"{spec}?class_names=a,,b")


def test_classes_of_one_name_are_told(tmp_path, caplog):
    spec = folder_of(tmp_path / "p", "0/1.png", "1/1.png", "2/1.png")
    (tmp_path / "names.txt").write_text("crane\ncat\ncrane\n")
    make_source(f"{spec}?class_names={tmp_path}/names.txt")
    assert "'crane' (" in caplog.text and "names.txt, line 1; " in caplog.text
    caplog.clear()
    make_source(f"{spec}?class_names=crane,cat,crane")
    assert "class_names[0]; data.source.class_names[2]" in caplog.text
    caplog.clear()
    make_source(folder_of(tmp_path / "q", "tabby_cat/1.png", "tabby cat/1.png"))
    assert "'tabby cat'" in caplog.text and "tabby_cat" in caplog.text
    caplog.clear()
    tens = {"spec": folder_of(tmp_path / "i", *(f"{n}/1.png" for n in range(1000)))}
    make_source({**tens, "class_names": "imagenet"})  # it has two `missile`, as published
    assert not caplog.text
