"""`?captions=lines|whole`: one option with one meaning, whatever the kind of source."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png, tar

from clipjax.data import make_source
from clipjax.data.captions import as_lines, has_lines
from clipjax.data.packed.records import pack_record, write_records

pytestmark = pytest.mark.usefixtures("cache")

TEXT = "a cat \n\n two cats\nthree"
LINES = ("a cat", "two cats", "three")


def folder(root):
    (root / "f").mkdir()
    (root / "f/1.png").write_bytes(png(1))
    (root / "f/1.txt").write_text(TEXT)
    return f"folder:{root}/f"


def tables(root):
    (root / "1.png").write_bytes(png(1))
    (root / "t.csv").write_text(f'image,text\n1.png,"{TEXT}"\n')
    (root / "t.jsonl").write_text(json.dumps({"image": "1.png", "text": [TEXT]}))
    return f"csv:{root}/t.csv", f"jsonl:{root}/t.jsonl"


def shards(root):
    tar(root / "t.tar", [("1.png", png(1)), ("1.txt", TEXT.encode())])
    tar(root / "j.tar", [("1.png", png(1)), ("1.json", json.dumps({"caption": TEXT}).encode())])
    return f"tar:{root}/t.tar", f"tar:{root}/j.tar"


def packed(root):
    pq.write_table(pa.table({"image": [png(1)], "text": [TEXT]}), root / "t.parquet")
    record = pack_record(key="1", text=(TEXT,), blobs={"image": png(1)})
    write_records(root / "t.array_record", [record])
    return f"parquet:{root}/t.parquet", f"arrayrecord:{root}/t.array_record"


def test_lines_and_whole_mean_the_same_everywhere(tmp_path):
    specs = (folder(tmp_path), *tables(tmp_path), *shards(tmp_path), *packed(tmp_path))
    for spec in specs:
        lines, whole = (make_source(f"{spec}?captions={how}") for how in ("lines", "whole"))
        assert lines[0]["text"] == LINES and lines.captions == "lines", spec
        assert whole[0]["text"] == TEXT and whole.captions == "whole", spec
        # The default is whole in training, but for folders; nothing of it changed.
        default = make_source(spec)
        kind = spec.partition(":")[0]
        assert default.captions == ("lines" if kind == "folder" else None)
        same, other = (lines, whole) if kind == "folder" else (whole, lines)
        assert default[0]["text"] == same[0]["text"]
        assert default.fingerprint() == same.fingerprint() != other.fingerprint()


def test_a_folder_says_once_how_many_texts_it_cuts(tmp_path, caplog):
    caplog.set_level("INFO")
    spec = folder(tmp_path)
    for name, text in (("2", "one"), ("3", "one\n"), ("4", TEXT)):
        (tmp_path / f"f/{name}.png").write_bytes(png(2))
        (tmp_path / f"f/{name}.txt").write_text(text)
    source = make_source(spec)
    fingerprints = {source.fingerprint() for _ in range(2)}
    assert caplog.text.count("2 of 4 texts hold several lines, and each line is a caption") == 1
    caplog.clear()
    fingerprints.add(make_source(f"{spec}?captions=lines").fingerprint())
    assert len(fingerprints) == 1 and not caplog.text  # what was asked for is not told


def test_sources_of_others_pass_it_on(tmp_path):
    spec, other = shards(tmp_path)
    mix = [{"spec": spec, "weight": 1}, {"spec": other, "weight": 1}]
    assert make_source(f"mix:{json.dumps(mix)}").captions is None
    openmoji = [
        {"spec": f"{spec}?captions=whole", "weight": 1},
        {"spec": "synthetic:4", "weight": 1},
    ]
    assert make_source(f"mix:{json.dumps(openmoji)}").captions == "whole"
    both = [{"spec": f"{spec}?captions={how}", "weight": 1} for how in ("whole", "lines")]
    assert make_source(f"mix:{json.dumps(both)}").captions == "whole"  # each as it was told
    mix[0]["spec"] += "?captions=whole"
    with pytest.raises(ValueError, match="some sources of the mix have captions=whole"):
        make_source(f"mix:{json.dumps(mix)}")


def test_classes_are_no_captions(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.png").write_bytes(png(1))
    with pytest.raises(ValueError, match="has classes: captions=lines is of no use"):
        make_source(f"folder:{tmp_path}?captions=lines")


def test_columns_of_a_table_become_a_map(tmp_path):
    tables(tmp_path)
    (tmp_path / "t.csv").write_text('image,short,long\n1.png,a,"b\nc"\n')
    source = make_source(f"csv:{tmp_path}/t.csv?text_field=short,long")
    assert source[0]["text"] == {"short": "a", "long": "b\nc"}
    chosen = make_source(f"csv:{tmp_path}/t.csv?text_field=short,long&language=long&captions=lines")
    assert chosen[0]["text"] == ("b", "c")
    with pytest.raises(ValueError, match="none of them title"):
        make_source(f"csv:{tmp_path}/t.csv?text_field=short,title")


def test_old_names_of_options_go_on(tmp_path):
    _, spec = packed(tmp_path)
    old, new = (make_source(f"{spec}?{name}=image") for name in ("blob", "image_field"))
    assert old.fingerprint() == new.fingerprint() == make_source(spec).fingerprint()
    with pytest.raises(ValueError, match="blob is the old name of image_field"):
        make_source(f"{spec}?blob=image&image_field=image")


@pytest.mark.parametrize(
    "text, lines, several",
    [
        (TEXT, LINES, True),
        ("one", "one", False),
        (" kept ", " kept ", False),
        ("one\n", "one", False),
        ("a\u2028b\r\nc", ("a\u2028b", "c"), True),
        (("a\nb", "c"), ("a", "b", "c"), True),
        ({"de": "a\nb", "en": ("c", "d")}, {"de": ("a", "b"), "en": ("c", "d")}, True),
        ("", "", False),
    ],
)
def test_lines(text, lines, several):
    assert as_lines(text) == lines and has_lines(text) is several
