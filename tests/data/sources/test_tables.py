"""Tables that lose no row: quotes, line ends, and rows that one run cannot use."""

import json

import numpy as np
import pytest
from archives import png

from clipjax.data import Loader, Preprocess, SampleError, make_source
from clipjax.data.inspect.contact_sheet import contact_sheet
from clipjax.data.inspect.statistics import measure, summarise
from clipjax.data.packing.packer import FORMATS, Packing, pack
from clipjax.data.sources import table_rows
from clipjax.data.sources.fields import field_of
from clipjax.data.storage import files as storage


@pytest.fixture
def table(tmp_path):
    def write(name, content):
        for number in range(4):
            (tmp_path / f"{number}.jpg").write_bytes(png(number))
        (tmp_path / name).write_bytes(content.encode())
        return f"csv:{tmp_path / name}"

    return write


def texts(spec):
    source = make_source(spec)
    return [source[i]["text"] for i in range(len(source))]


def test_quotes_of_csv(table):
    content = 'image,text\r\n\r\n0.jpg,"a ""big"", red\ndog"\r\n1.jpg,it\'s "so"\r\n2.jpg, "x\r\n'
    assert texts(table("a.csv", content)) == ['a "big", red\ndog', 'it\'s "so"', ' "x']


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.csv",
            b"image,text\n0.jpg,x\n1.jpg,Stra\xdfe\n",
            "line 3 is not UTF-8.*iconv -f latin1",
        ),
        ("b.csv", b"\xef\xbb\xbfimage,text\n1.jpg,\xdf\n", "line 2 is not UTF-8"),
        ("c.csv", b"image;text\n0.jpg;x\n", r"one column, 'image;text': the separator of \.csv"),
        ("d.csv", b"image\ttext\n0.jpg\tx\n", r"one column.*that of \.tsv is a tab"),
        ("e.tsv", b"image,text\n0.jpg,x\n", r"one column.*that of \.tsv is a tab"),
        ("f.csv", b"URL,text\nhttp://x/y.jpg,x\n", r"\?image_field=NAME.*img2dataset downloads"),
        ("g.csv", b"picture,text\n0.jpg,x\n", r"give \?image_field=NAME in the SPEC$"),
    ],
)
def test_what_is_wrong_with_a_table_and_how_to_mend_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make_source(f"csv:{tmp_path}/{name}")


def test_a_table_that_cannot_be_read(tmp_path, monkeypatch):
    for where, message in (
        (tmp_path / "a.csv", r"a\.csv$"),
        (tmp_path, "is a folder, name a file"),
    ):
        with pytest.raises(ValueError, match=f"there is no file .*{message}"):
            make_source(f"csv:{where}")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(storage, "read_all", refuse)
    with pytest.raises(ValueError, match=r"a\.csv may not be read: .* chmod"):
        make_source(f"csv:{tmp_path}/a.csv")


def test_unusable_rows_name_their_line(table):
    for name, content, line in (
        ("a.csv", 'image,text\n\n0.jpg,"two\nlines"\nno.jpg,x\n', 5),
        ("a.jsonl", '{"image": "0.jpg", "text": "x"}\n\n{"image": "no.jpg", "text": "x"}', 3),
    ):
        with pytest.raises(SampleError, match=f"{name}:1: line {line}: there is no file"):
            make_source(table(name, content))[1]


@pytest.mark.parametrize(
    "content, message",
    [
        ('0.jpg,x\n1.jpg,"a dog\n2.jpg,a cat\n3.jpg,a fox\n', "row of line 3: unexpected end"),
        ('0.jpg,"a dog\n1.jpg,"a cat"\n2.jpg,x\n', "row of line 2: ',' expected after '\"'"),
        ('0.jpg,"a" dog\n', "row of line 2: ',' expected after '\"'"),
        ('0.jpg,"a\ndog"\n1.jpg,a,b\n', "line 4 has 3 cells, its header 2"),
        ("0.jpg\n", "line 2 has 1 cells, its header 2"),
        (f"0.jpg,{'x' * 140_000}\n", "row of line 2: field larger than"),
    ],
)
def test_csv_that_would_lose_rows_is_refused(table, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_source(table("a.csv", f"image,text\n{content}"))
    assert "a.csv" in str(caught.value) and "is one not closed?" in str(caught.value)


def test_quotes_of_tsv_are_text(table):
    content = 'image\ttext\n0.jpg\t"tis a dog\n1.jpg\t"so" fox\n2.jpg\t"quoted"\n3.jpg\tend\n'
    assert texts(table("a.tsv", content)) == ['"tis a dog', '"so" fox', '"quoted"', "end"]
    with pytest.raises(ValueError, match=r"line 2 has 3 cells, its header 2: .* no tab"):
        make_source(table("b.tsv", 'image\ttext\n0.jpg\t"a\tb"\n'))


def test_a_column_twice_is_refused(table):
    with pytest.raises(ValueError, match=r"a\.csv has the column 'text' more than once"):
        make_source(table("a.csv", "image,text,text\n0.jpg,first,second\n"))
    assert texts(table("b.csv", "image,text,,\n0.jpg,x,,\n")) == ["x"]  # of a spreadsheet


def labels(spec):
    source, found = make_source(spec), []
    for index in range(len(source)):
        try:
            found.append(source[index]["label"])
        except SampleError as error:
            found.append(error.reason)
    return source.class_names, found


def test_labels_that_are_numbers_keep_their_value(table):
    names = [f"name{i}" for i in range(12)]
    content = "image,text,kind\n" + "".join(f"0.jpg,x,{i}\n" for i in (10, 2, 0, 13, -1, ""))
    spec = table("a.csv", content) + "?label_field=kind"
    assert labels(spec) == (None, [10, 2, 0, 13, "label", "label"])
    expected = (tuple(names), [10, 2, 0, "label", "label", "label"])
    assert labels(f"{spec}&class_names={','.join(names)}") == expected
    rows = [{"image": "0.jpg", "text": "x", "kind": kind} for kind in (10, "2", 0, 13, -1, None)]
    lines = "\n".join(map(json.dumps, rows))
    spec = table("a.jsonl", lines) + "?label_field=kind"
    assert labels(spec) == (None, [10, 2, 0, 13, "label", "label"])
    assert labels(f"{spec}&class_names={','.join(names)}") == expected


def test_labels_that_are_names(table):
    kinds = ["dog", "cat", None, "3", True, 2.5, ["x"]]
    rows = [{"image": "0.jpg", "text": "x", "kind": kind} for kind in kinds]
    spec = table("a.jsonl", "\n".join(map(json.dumps, rows))) + "?label_field=kind"
    assert labels(spec) == (("3", "cat", "dog"), [2, 1, "label", 0, "label", "label", "label"])
    # Names that are given say the order.
    assert labels(f"{spec}&class_names=dog,cat")[1][:4] == [0, 1, "label", "label"]
    with pytest.raises(ValueError, match="no class in 'text2'"):
        make_source(table("b.csv", "image,text,text2\n0.jpg,x,\n") + "?label_field=text2")


def test_lines_of_json_end_at_line_feeds(table):
    captions = ["a\u2028b", "a\u0085b\u001cc", "d"]
    rows = [
        json.dumps({"image": f"{i}.jpg", "text": text}, ensure_ascii=False)
        for i, text in enumerate(captions)
    ]
    assert texts(table("a.jsonl", "\r\n".join(rows) + "\n\n")) == captions


@pytest.mark.parametrize("line", ["[" * 100_000, '{"n": ' + "1" * 5000 + "}", "{"])
def test_a_line_that_is_no_json_is_named(table, line):
    spec = table("a.jsonl", '{"image": "0.jpg", "text": "x"}\n' + line)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is no JSON"):
        make_source(spec)


REFUSED = ("../x.jpg", "/etc/hostname", "http://x/y.jpg", "a\0b.jpg", "\ud83d.jpg", "gs://b/../c")


def test_paths_that_are_refused_are_counted_and_stop_nothing(table, tmp_path):
    rows = [{"image": f"{i % 4}.jpg", "text": f"{i}"} for i in range(26)]
    rows += [{"image": name, "text": "y"} for name in REFUSED]
    source = make_source(table("a.jsonl", "\n".join(map(json.dumps, rows))))
    with Loader(
        source, (), lambda texts: np.zeros((len(texts), 1), np.int32), batch_size=32, seed=0,
        preprocess=Preprocess(2), max_bad_fraction=1.0,
    ) as loader:  # fmt: skip
        loader.batch(0)
        assert loader.counts()["path_refused"] >= len(REFUSED)
        assert {example.reason for example in loader.bad_examples()} == {"path_refused"}
    assert summarise(measure(source, np.arange(32)))["unusable"] == {"path_refused": 6}
    list(pack(source, tmp_path / "out", Packing(max_bad_fraction=0.5), workers=1))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["count"] == 26 and manifest["skipped"] == {"path_refused": 6}


def test_half_a_surrogate_pair_goes_through_every_command(table, tmp_path):
    row = r'{"image": "0.jpg", "text": "half \ud83d pair", "kind": "\udc80"}'
    source = make_source(table("a.jsonl", row) + "?label_field=kind")
    assert source[0]["text"] == "half \ufffd pair" and source.class_names == ("\ufffd",)
    assert "half \ufffd pair" in contact_sheet(source, "title", np.arange(1), ".html").decode()
    for kind, suffix in FORMATS.items():
        list(pack(source, tmp_path / kind, Packing(format=kind), workers=1))
        packed = make_source(f"{kind}:{tmp_path}/{kind}/*{suffix}")
        assert packed[0]["text"] == "half \ufffd pair"


def test_a_header_costs_its_columns(table, monkeypatch):
    """Of 20,000 columns each was compared with all."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return field_of(*arguments)

    monkeypatch.setattr(table_rows, "field_of", counted)
    columns = ["image", "text", *(f"c{number}" for number in range(200))]
    assert texts(table("a.csv", f"{','.join(columns)}\n{','.join(['0.jpg'] * 202)}\n")) == ["0.jpg"]
    assert len(calls) < 5


def test_captions_in_captions_are_no_bug_of_ours(table):
    def nested(depth):
        return '{"a":' * depth + '"x"' + "}" * depth

    lines = [f'{{"image": "0.jpg", "text": {nested(depth)}}}' for depth in (1, 400)]
    source = make_source(table("a.jsonl", "\n".join(lines)))
    assert source[0]["text"] == {"a": "x"}
    with pytest.raises(SampleError) as caught:
        source[1]
    assert caught.value.reason == "missing_text"


def test_groups_and_several_classes_of_a_row(table):
    spec = table("a.csv", "image,class,region\n0.jpg,cat,Asia\n1.jpg,dog,\n2.jpg,cat,0\n")
    source = make_source(f"{spec}?label_field=class&group_field=region")
    assert (source.group_names, source.several) == (("region",), False)
    assert [source[i]["groups"]["region"] for i in range(3)] == ["Asia", "", "0"]
    with pytest.raises(ValueError, match=r"none of them income: give \?group_field=NAME"):
        make_source(f"{spec}?label_field=class&group_field=income")
    rows = [{"image": "0.jpg", "classes": ["dog", "cat"]}, {"image": "1.jpg", "classes": []}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    spec = table("b.jsonl", lines).replace("csv:", "jsonl:")
    source = make_source(f"{spec}?label_field=classes")
    assert source.several and source.class_names == ("cat", "dog")
    assert [source[i]["labels"] for i in range(2)] == [(1, 0), ()]
    assert source[0]["text"] == "dog, cat"
