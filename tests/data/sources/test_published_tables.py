"""Tables as they are published: separators, capitals, encodings, COCO, Flickr30k, img2dataset."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png, tar
from data_command import run

from clipjax.data import SampleError, make_source
from clipjax.data.classes.named_lists import load_class_names
from clipjax.data.source import pictures_of

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def table(tmp_path):
    """Writes a table beside four pictures; gives its path."""
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(png(number))

    def write(name, content, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content.encode(encoding))
        return path

    return write


def pairs(spec):
    source = make_source(spec)
    return [(source[i]["image"], source[i]["text"]) for i in range(len(source))]


def reason_of(source, index):
    with pytest.raises(SampleError) as caught:
        source[index]
    return caught.value.reason


SEPARATED = [
    ("a.csv", ";", "semicolon", '0.jpg;"a; b"\n1.jpg;c, d\n', ["a; b", "c, d"]),
    ("a.csv", ";", ";", "0.jpg;x\n", ["x"]),
    ("a.csv", "\t", "tab", '0.jpg\t"x\n', ['"x']),
    ("a.txt", ",", "comma", '0.jpg,"a, b"\n', ["a, b"]),
    ("a.txt", ",", ",", "0.jpg,x\n", ["x"]),
    ("a.tsv", "|", "pipe", '0.jpg|"x" , y\n', ['"x" , y']),
]


@pytest.mark.parametrize("name, mark, option, rows, expected", SEPARATED)
def test_separators(table, name, mark, option, rows, expected):
    path = table(name, f"image{mark}text\n{rows}")
    found = pairs(f"csv:{path}?separator={option}")
    assert found == [(png(i), text) for i, text in enumerate(expected)]


def test_what_is_said_of_another_separator(table):
    for content, option in (
        ("image;text\n0.jpg;x\n", "semicolon"),
        ("image\ttext\n0.jpg\tx\n", "tab"),
        ("image_name| comment\n0.jpg| x\n", "pipe"),
    ):
        path = table("a.csv", content)
        with pytest.raises(
            ValueError, match=rf"one column, .*write \?separator={option} in the SPEC"
        ):
            make_source(f"csv:{path}")
        assert pairs(f"csv:{path}?separator={option}") == [(png(0), "x")]
    path = table("a.txt", "image,text\n0.jpg,x\n")
    with pytest.raises(
        ValueError, match=r"ends in '\.txt'.*\?separator=comma\|semicolon\|tab\|pipe"
    ):
        make_source(f"csv:{path}")
    with pytest.raises(ValueError, match=r"separator='/' of .*: allowed are comma, semicolon"):
        make_source(f"csv:{path}?separator=/")
    with pytest.raises(ValueError, match="JSON lines: separator='tab' is of no use"):
        make_source(f"csv:{table('a.jsonl', '{}')}?separator=tab")


def test_capitals_of_a_header(table, tmp_path):
    path = table("a.csv", "IMAGE,CAPTION,Kind,URL\n0.jpg,x,cat,http://x\n")
    assert pairs(f"csv:{path}") == [(png(0), "x")]
    assert make_source(f"csv:{path}?label_field=kind").class_names == ("cat",)
    path = table("b.csv", "Filename,TITLE\n0.jpg,x\n")
    assert pairs(f"csv:{path}") == [(png(0), "x")]
    assert pairs(f"jsonl:{table('c.jsonl', json.dumps({'Image': '0.jpg', 'TEXT': 'x'}))}")
    pq.write_table(pa.table({"Image": [png(0)], "TEXT": ["x"]}), tmp_path / "a.parquet")
    assert pairs(f"parquet:{tmp_path}/a.parquet") == [(png(0), "x")]
    # As it is written goes first; where nothing is, two that differ in capitals alone are refused.
    path = table("d.csv", "image,Text,text\n0.jpg,x,y\n")
    assert pairs(f"csv:{path}") == [(png(0), "y")]
    path = table("e.csv", "image,Text,TEXT\n0.jpg,x,y\n")
    with pytest.raises(
        ValueError, match=r"Text and TEXT, which differ in capitals alone.*text_field"
    ):
        make_source(f"csv:{path}")
    assert pairs(f"csv:{path}?text_field=TEXT") == [(png(0), "y")]


@pytest.mark.parametrize(
    "encoding, told",
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
    ],
)
def test_utf_16_is_called_by_its_name(table, encoding, told):
    content = "image,text\n0.jpg,ein Fuß\n1.jpg,катер\n"
    path = table("a.csv", content, encoding)
    advice = rf"`iconv -f {told.lower()} -t utf-8 a\.csv > utf8-a\.csv`"
    with pytest.raises(ValueError, match=rf"a\.csv is {told}, expected UTF-8: {advice}.*Excel"):
        make_source(f"csv:{path}")
    # What is advised is right.
    again = table("b.csv", path.read_bytes().decode(told.lower()))
    assert [text for _, text in pairs(f"csv:{again}")] == ["ein Fuß", "катер"]
    names = table("names.txt", "cat\ndog\n", encoding)
    with pytest.raises(ValueError, match=rf"names\.txt is {told}, expected UTF-8") as caught:
        load_class_names(str(names))
    assert "Excel" not in str(caught.value)  # which writes tables


def test_captions_in_utf_16_are_called_so(tmp_path):
    text = "ein Fuß".encode("utf-16")
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "1.txt").write_bytes(text)
    tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.txt", text)])
    pq.write_table(pa.table({"image": [png(1)], "text": [text]}), tmp_path / "a.parquet")
    for spec in (f"folder:{tmp_path}", f"tar:{tmp_path}/a.tar", f"parquet:{tmp_path}/a.parquet"):
        with pytest.raises(SampleError, match=r"is not UTF-8: .*; it is UTF-16 \[text_encoding\]"):
            make_source(spec)[0]


FLICKR = (
    "image_name| comment_number| comment\n"
    '0.jpg| 0| Two "young" guys , one\'s hair .\n0.jpg| 1| Two men .\n1.jpg| 4   A dog runs .\n'
)


def test_the_table_of_flickr30k(table, capsys):
    path = table("results.csv", FLICKR)
    source = make_source(f"csv:{path}?separator=pipe")
    assert [source[i]["text"] for i in (0, 1)] == ['Two "young" guys , one\'s hair .', "Two men ."]
    assert source[1]["image"] == png(0)
    # Of the published file, one row lacks a separator: it is counted, and named by its line.
    assert reason_of(source, 2) == "row_cells"
    assert run("check", f"csv:{path}?separator=pipe") == 1
    assert (
        "1 of 3 examples are unusable [row_cells]: results.csv:2 (line 4" in capsys.readouterr().out
    )


def coco(tmp_path, about, *, pictures="val2017"):
    for folder in ("annotations", pictures):
        (tmp_path / folder).mkdir(exist_ok=True)
    for number in range(3):
        (tmp_path / pictures / f"{number:012d}.jpg").write_bytes(png(number))
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps(about), encoding="utf-8")
    return path


IMAGES = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 3} for i in (2, 0, 1)]
CAPTIONS = [{"id": 9 - i, "image_id": i % 2 * 2, "caption": f" caption {i}\n"} for i in range(10)]


def test_captions_of_coco(tmp_path, capsys):
    path = coco(tmp_path, {"info": {}, "images": IMAGES, "annotations": CAPTIONS})
    source = make_source(f"coco:{path}")
    assert len(source) == 3 and source[0]["key"] == "000000000002.jpg"
    assert source[0]["image"] == png(2) and source[1]["image"] == png(0)
    assert source[1]["text"] == tuple(f"caption {i}" for i in range(0, 10, 2))
    assert reason_of(source, 2) == "missing_text"
    assert make_source(f"coco:{path}?root={tmp_path}/val2017").fingerprint() == source.fingerprint()
    assert run("check", f"coco:{path}") == 1
    assert "1 of 3 examples are unusable [missing_text]" in capsys.readouterr().out
    # Without the folders of COCO, pictures stand beside the file.
    (tmp_path / "val2017" / "a.json").write_text(path.read_text())
    assert make_source(f"coco:{tmp_path}/val2017/a.json")[0]["image"] == png(2)


@pytest.mark.parametrize(
    "about, message",
    [
        ([], "holds no list of `images`"),
        ({"images": IMAGES, "annotations": [{"image_id": 2, "bbox": []}]}, "called captions_"),
        ({"images": IMAGES, "annotations": [{"image_id": 7, "caption": "x"}]}, "image 7, which"),
        ({"images": [*IMAGES, IMAGES[0]], "annotations": []}, "two images of the id 2"),
        ({"images": [{"id": 1}], "annotations": []}, "lacks `id` or `file_name`"),
        ({"images": [{"id": 1}]}, "neither `annotations` nor"),
    ],
)
def test_files_that_are_not_coco_s(tmp_path, about, message):
    with pytest.raises(ValueError, match=rf"captions_val2017\.json.*{message}"):
        make_source(f"coco:{coco(tmp_path, about)}")


def test_splits_of_karpathy(tmp_path):
    images = [
        {
            "filepath": "val2014",
            "filename": f"{i:012d}.jpg",
            "split": split,
            "sentences": [{"raw": f"{split} {j}", "tokens": []} for j in range(5)],
        }
        for i, split in enumerate(("test", "train", "test"))
    ]
    path = coco(tmp_path, {"dataset": "coco", "images": images}, pictures="val2014")
    source = make_source(f"coco:{path}:test?root={tmp_path}")
    assert [source[i]["image"] for i in range(len(source))] == [png(0), png(2)]
    assert source[1]["text"] == tuple(f"test {j}" for j in range(5))
    whole = make_source(f"coco:{path}?root={tmp_path}")
    assert len(whole) == 3 and whole.fingerprint() != source.fingerprint()
    with pytest.raises(ValueError, match="no split 'val'; it has test, train"):
        make_source(f"coco:{path}:val?root={tmp_path}")
    with pytest.raises(ValueError, match="leave out :test"):
        make_source(f"coco:{coco(tmp_path, {'images': IMAGES, 'annotations': CAPTIONS})}:test")


def downloads(folder, shard, *, extension="jpg", failed=(1,), **more):
    """A shard as img2dataset writes it with output_format="files"."""
    keys = [f"{shard:05d}{i:04d}" for i in range(3)]
    (folder / f"{shard:05d}").mkdir(parents=True)
    for i, key in enumerate(keys):
        if i not in failed:
            (folder / f"{shard:05d}" / f"{key}.{extension}").write_bytes(png(3 * shard + i))
    columns = {"url": [f"http://x/{key}" for key in keys], "caption": [f"text {k}" for k in keys]}
    columns |= {"key": keys, "sha256": ["x"] * 3}
    columns["status"] = ["failed_to_download" if i in failed else "success" for i in range(3)]
    columns["error_message"] = ["HTTP Error 404" if i in failed else None for i in range(3)]
    pq.write_table(pa.table({**columns, **more}), folder / f"{shard:05d}.parquet")


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_files_of_img2dataset(tmp_path, extension, capsys):
    data = tmp_path / "laion"
    downloads(data, 0, extension=extension, failed=(0, 1, 2))  # nothing of the first shard
    downloads(data, 1, extension=extension)
    source = make_source(f"parquet:{data}/*.parquet")
    assert source[3]["image"] == png(3) and source[5]["image"] == png(5)
    assert source[5]["text"] == "text 000010002" and source[5]["key"] == "00001.parquet:2"
    assert [reason_of(source, i) for i in (0, 4)] == ["filtered_download"] * 2
    assert run("check", f"parquet:{data}/00001.parquet", "--decode") == 0
    assert "left out on purpose: 1 filtered_download" in capsys.readouterr().out
    table = tmp_path / "tables"
    table.mkdir()
    (data / "00001.parquet").rename(table / "00001.parquet")
    assert make_source(f"parquet:{table}/00001.parquet?root={data}")[2]["image"] == png(5)
    with pytest.raises(ValueError, match=r"no file .*/00001/000010000\.jpg \(or \.png, \.webp\)"):
        make_source(f"parquet:{table}/00001.parquet")


def test_equal_keys_of_two_downloads_are_two_pictures(tmp_path):
    for folder in "ab":
        downloads(tmp_path / folder, 0, failed=())
    source = make_source(f"parquet:{tmp_path}/{{a,b}}/00000.parquet")
    assert len(set(pictures_of(source))) == 6
    twice = make_source(f"parquet:{tmp_path}/a/00000.parquet")
    assert pictures_of(twice) == pictures_of(source)[:3]


def test_a_key_may_not_lead_elsewhere(tmp_path):
    downloads(tmp_path, 0, key=["000000000", "x", "../../x"], failed=())
    source = make_source(f"parquet:{tmp_path}/00000.parquet")
    assert [reason_of(source, i) for i in (1, 2)] == ["missing_image", "path_refused"]
