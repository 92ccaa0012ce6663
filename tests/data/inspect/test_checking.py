import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import pairs, png, tar
from buckets import bucket
from PIL import Image

from clipjax.cli import data as data_cli
from clipjax.data import make_source
from clipjax.data.inspect import checking
from clipjax.data.inspect.checking import check, check_examples
from clipjax.data.packed.records import pack_record, write_records
from clipjax.data.packing.packer import Packing, pack
from clipjax.data.source import SampleError
from clipjax.data.storage import file_reader
from clipjax.data.storage.retrying import StorageError

pytestmark = pytest.mark.usefixtures("cache")


def findings(spec, **options):
    found = [checked for checked, _ in check(str(spec), workers=2, **options)]
    return sorted(f for checked in found for f in checked.findings)


def indexed(path, members):
    tar(path, members)
    make_source(f"tar:{path}")
    return path


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def place_of(path, name):
    with tarfile.open(path) as archive:
        member = archive.getmember(name)
        return member.offset_data, member.size


def test_whole_shards_have_no_findings(tmp_path):
    for number in range(3):
        indexed(tmp_path / f"{number}.tar", pairs(20, 20 * number))
    done = list(check(f"tar:{tmp_path}/*.tar", decode=True))
    assert [total for _, total in done] == [3, 3, 3]
    assert sum(checked.examples for checked, _ in done) == 60
    assert not any(checked.findings for checked, _ in done)
    assert findings(f"tar:{tmp_path}/?.tar?ignore=npy") == []


def damage_payload(path):
    offset, size = place_of(path, "00100.png")
    flip(path, offset + size // 2)


def damage_header(path):
    flip(path, place_of(path, "00100.png")[0] - 500, 3)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20_000])


def longer(path):
    path.write_bytes(path.read_bytes() + bytes(512))


def other_pairs(path):
    tar(path, pairs(200, 1))


DAMAGES = {
    damage_payload: "1 members are others than in its index .*: 00100.png",
    damage_header: "the checksum of its header at byte",
    cut: "is cut short at byte",
    longer: "200 records in .* bytes; its index .* says 200 in",
    other_pairs: "400 members are others than",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damaged_shards_are_named(tmp_path, damage):
    indexed(tmp_path / "whole.tar", pairs(5))
    path = indexed(tmp_path / "a.tar", pairs(200))
    damage(path)
    ((where, what),) = findings(f"tar:{tmp_path}/*.tar")
    assert where == str(path)
    assert re.search(DAMAGES[damage], what), what


@pytest.mark.parametrize(
    "members, message",
    [
        ([*pairs(2), ("9.png", png(9))], "1 of 3 examples are unusable [missing_text]: 9 "),
        ([*pairs(2), ("9.txt", b"alone")], "1 of 3 examples are unusable [missing_image]: 9 "),
        ([*pairs(2), ("00001.txt", b"again")], "key '00001' twice"),
        ([*pairs(2), ("00001.jpg", b"again")], "key '00001' twice"),
        (
            [*pairs(2), ("00001.npy", b"1")],
            "1 members have the unknown extension 'npy': a key ends",
        ),
        (
            [*pairs(2), ("a.b.jpg", b"1")],
            "first dot; what is not needed is declared: ?ignore=b.jpg",
        ),
        ([*pairs(2), ("9.png", (tarfile.SYMTYPE, "/etc/passwd"))], "type"),
        ([*pairs(2), ("9.png", (tarfile.LNKTYPE, "00001.png"))], "type"),
        ([*pairs(2), ("9.png", (tarfile.CHRTYPE, ""))], "type"),
        ([*pairs(2), ("/9.png", png(9))], "outside"),
        ([*pairs(2), ("../9.png", png(9))], "outside"),
    ],
)
@pytest.mark.parametrize("decode", [False, True])
def test_shards_without_an_index_are_checked_by_themselves(tmp_path, members, message, decode):
    path = tar(tmp_path / "a.tar", members)
    ((where, what),) = findings(f"tar:{path}", decode=decode)
    assert where == str(path) and message in what
    assert list(tmp_path.iterdir()) == [path]  # looking changes nothing


def test_captions_and_pictures_are_those_that_the_source_can_use(tmp_path):
    members = [*pairs(2), ("2.png", png(2)), ("2.json", b'{"url": "x"}')]
    members += [("3.png", png(3)), ("3.json", b"{broken"), ("4.png", b""), ("4.txt", b"a")]
    members += [("5.png", png(5)), ("5.txt", b"\xff\xfe"), ("6.png", png(6)), ("6.txt", b" ")]
    members += [("7.png", png(7)), ("7.json", b"{broken"), ("7.txt", b"it is not read")]
    members += [("8.png", png(8)), ("8.json", b"{broken")]
    path = tar(tmp_path / "a.tar", members)
    for decode in (False, True):
        ((_, what),) = findings(f"tar:{path}", decode=decode)
        found = {re.search(r"\[(.*)\]", part)[1]: part for part in re.split(r"; (?=\d)", what)}
        assert found.keys() == {
            "image_empty",
            "json",
            "missing_text",
            "text_empty",
            "text_encoding",
        }
        assert "2 of 9" in found["json"] and "3 (the .json" in found["json"]
        assert found["json"].endswith("and 1 more")
    ((_, what),) = findings(f"tar:{path}?ignore=png")
    assert what.startswith("9 of 9 examples are unusable [missing_image]: 00000 ")


def test_classes_are_read_with_their_names(tmp_path):
    members = [("0.png", png(0)), ("0.cls", b"0"), ("1.png", png(1)), ("1.cls", b"7")]
    path = tar(tmp_path / "a.tar", members)
    assert findings(f"tar:{path}") == []  # labels alone are enough to evaluate
    ((_, what),) = findings(f"tar:{path}?class_names=cat,dog")
    assert "1 of 2 examples are unusable [label]: 1 (the class is '7' of 2)" in what
    with pytest.raises(ValueError, match="tar has no option ingore"):
        findings(f"tar:{path}?ingore=npy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ignore=5", r"ignore = 5: expected a text or a list of texts"),
        ("ignore=true", "ignore = True: expected"),
        ("class_names=3", "class_names = 3: expected a list of texts"),
        ("class_names=1.5", "class_names = 1.5: expected"),
    ],
)
def test_options_of_another_type(tmp_path, options, message):
    tar(tmp_path / "a.tar", pairs(2))
    with pytest.raises(ValueError, match=message):
        findings(f"tar:{tmp_path}/a.tar?{options}")


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("[]", "a mix of no sources"),
        ('[{"spec": 3, "weight": 1}]', "the data source is 3, expected `kind:where"),
        ('[{"spec": null, "weight": 1}]', "the data source is None"),
        ('[{"spec": "mix:[]", "weight": 1}]', "holds a mix: name its sources one by one"),
        ('[{"spec": "tar:a.tar", "weight": 1, "ignore": [1]}]', r"ignore = \[1\]: expected"),
    ],
)
def test_mixes_of_nothing_or_of_the_wrong_things(tmp_path, monkeypatch, mix, message):
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "a.tar", pairs(2))
    with pytest.raises(ValueError, match=message):
        findings(f"mix:{mix}")
    assert findings('mix:[{"spec": "tar:a.tar", "weight": 1}]') == []


def test_an_empty_shard_that_nobody_packed_is_a_finding(tmp_path):
    tar(tmp_path / "a.tar", [])
    for decode in (False, True):
        ((_, what),) = findings(f"tar:{tmp_path}/a.tar", decode=decode)
        assert what == "it is empty: it holds no image-text pair"


def test_large_members_are_looked_at_too(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG", compress_level=0)
    picture, text = bytearray(out.getvalue()), b"\xff" * (1 << 20) + b"a"
    whole = tar(tmp_path / "a.tar", [("0.png", bytes(picture)), ("0.txt", b"a")])
    assert findings(f"tar:{whole}", decode=True) == []
    picture[700_000] ^= 1
    tar(tmp_path / "b.tar", [("0.png", bytes(picture)), ("0.txt", b"a"), *pairs(1, 1)])
    assert findings(f"tar:{tmp_path}/b.tar") == []
    ((_, what),) = findings(f"tar:{tmp_path}/b.tar", decode=True)
    assert "1 of 2 examples are unusable [image_undecodable]: 0 " in what
    tar(tmp_path / "c.tar", [("0.png", png(0)), ("0.txt", text)])
    ((_, what),) = findings(f"tar:{tmp_path}/c.tar")
    assert "[text_encoding]" in what


@pytest.mark.parametrize("decode", [False, True])
def test_a_network_that_fails_is_no_damage(monkeypatch, tmp_path, decode):
    path = tar(tmp_path / "a.tar", pairs(3))
    with bucket(monkeypatch, {"b/a.tar": path.read_bytes()}):

        def fail(path, offset, size):
            raise StorageError(f"reading bytes {offset}..{offset + size} of {path} failed 6 times")

        monkeypatch.setattr(file_reader, "read", fail)
        with pytest.raises(StorageError, match=r"of memory://b/a\.tar failed 6 times"):
            findings("tar:memory://b/a.tar", decode=decode)

    class Broken:
        class_names = None

        def __getitem__(self, index):
            raise StorageError("it does not answer")

    with pytest.raises(StorageError):
        check_examples(Broken(), range(2), "x", decode=False)


def test_what_a_source_leaves_out_on_purpose_is_no_finding():
    class Filtered:
        class_names = None

        def __getitem__(self, index):
            raise SampleError("filtered_language", "it has no caption in 'de'", "k")

    checked = check_examples(Filtered(), range(2), "x", decode=False)
    assert checked.findings == [] and checked.left_out == {"filtered_language": 2}


def rows_of(path, texts):
    (path.parent / "1.png").write_bytes(png(1))
    rows = [{"image": "1.png", "text": text} for text in texts]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_data_that_is_all_left_out_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "CHUNK", 2)
    one = rows_of(tmp_path / "a.jsonl", [{"en": "a"}] * 3 + [{"de": "b"}])
    other = rows_of(tmp_path / "b.jsonl", [{"de": "b"}] * 4)
    done = [checked for checked, _ in check(f"jsonl:{one}?language=de")]
    assert sum(checked.left_out.get("filtered_language", 0) for checked in done) == 3
    assert not any(checked.findings for checked in done)
    spec = f"jsonl:{one}?language=fr"
    assert findings(spec) == [(spec, "all 4 examples are left out on purpose")]
    parts = [{"spec": f"jsonl:{path}?language=en", "weight": 1} for path in (one, other)]
    ((where, what),) = findings(f"mix:{json.dumps(parts)}")
    assert "b.jsonl" in where and "all 4 examples" in what


def test_captions_of_a_shard_in_a_language(tmp_path):
    captions = [{"en": "a", "de": "b"}, {"en": "a"}, {"en": "a"}]
    members = [(f"{i}.png", png(i)) for i in range(3)]
    members += [(f"{i}.json", json.dumps({"captions": c}).encode()) for i, c in enumerate(captions)]
    path = tar(tmp_path / "a.tar", members)
    ((checked, _),) = check(f"tar:{path}?language=de")
    assert checked == (3, [], {"filtered_language": 2})
    assert findings(f"tar:{path}?language=en") == []
    assert "all 3 examples" in findings(f"tar:{path}?language=fr")[0].what


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("nope.parquet:top=0.5", "there is no file nope.parquet"),
        ("s.parquet:top=2", "expected a part of 1"),
        ("s.parquet", "is none of FILE.parquet:top=0.3 and"),
        ("s.parquet:min=5", "keeps none of the examples"),
        ("other.parquet:top=0.5", "has the scores of other data"),
        ("s.parquet:top=0.5", None),
    ],
)
def test_filters_are_tried(tmp_path, monkeypatch, rule, message):
    monkeypatch.chdir(tmp_path)
    table = rows_of(tmp_path / "t.jsonl", ["a", "b"])
    keys = ["t.jsonl:0", "t.jsonl:1"]
    mine = make_source(f"jsonl:{table}").fingerprint()
    for name, fingerprint in (("s", mine), ("other", "0" * 64)):
        scores = pa.table({"key": keys, "score": pa.array([0.1, 0.2], pa.float32())})
        scores = scores.replace_schema_metadata({"fingerprint": fingerprint})
        pq.write_table(scores, f"{name}.parquet")
    spec = f"jsonl:{table}?filter={rule}"
    found = findings(f'mix:[{{"spec": "{spec}", "weight": 1}}]')
    assert found == findings(spec)
    if message is None:
        assert found == []
        return
    ((where, what),) = found
    assert where == f"filter={rule}" and message in what


def test_damaged_shards_are_named_beside_a_filter(tmp_path):
    for number in range(3):
        tar(tmp_path / f"{number}.tar", pairs(100))
    cut(tmp_path / "0.tar")
    cut(tmp_path / "2.tar")
    found = findings(f"tar:{tmp_path}/*.tar?filter=s.parquet:top=0.5")
    assert [where for where, _ in found] == [
        f"{tmp_path}/0.tar",
        f"{tmp_path}/2.tar",
        "filter=s.parquet:top=0.5",
    ]


def lose(folder, shards):
    shards[1].unlink()
    return shards[1], "is missing: manifest.json says that it has 4 examples"


def replace(folder, shards):
    shards[2].write_bytes(shards[0].read_bytes())
    return shards[2], "manifest.json"


def add(folder, shards):
    path = folder / f"00009{shards[0].suffix}"
    path.write_bytes(shards[0].read_bytes())
    return path, "manifest.json beside it does not name it"


@pytest.mark.parametrize("damage", [lose, replace, add])
@pytest.mark.parametrize("format, suffix", [("tar", ".tar"), ("arrayrecord", ".array_record")])
def test_packed_shards_are_compared_with_the_manifest(tmp_path, damage, format, suffix):
    how = Packing(shard_size=4, format=format)
    list(pack(make_source("synthetic:10?side=8"), tmp_path, how, workers=1))
    shards = sorted(path for path in tmp_path.iterdir() if path.suffix == suffix)
    spec = f"{format}:{tmp_path}/*{suffix}"
    assert findings(spec) == []
    path, message = damage(tmp_path, shards)
    if format == "arrayrecord" and path.exists():  # with the record file's own manifest
        Path(f"{path}.json").write_bytes(Path(f"{shards[0]}.json").read_bytes())
    ((where, what),) = findings(spec)
    assert where == str(path) and message in what
    if damage is not lose:  # of some of the shards the others may be checked alone
        assert findings(f"{format}:{shards[0]}") == []


def test_a_source_that_raises_anything_is_a_finding():
    class Broken:
        class_names = None

        def __getitem__(self, index):
            if index == 1:
                raise RuntimeError("the record is cut")
            if index == 2:
                raise SampleError("damaged", "its checksum", "k2")
            return {"image": png(1), "text": None if index == 3 else "a", "key": f"k{index}"}

    checked = check_examples(Broken(), range(5), "x.tfrecord", decode=True)
    ((where, what),) = checked.findings
    assert where == "x.tfrecord"
    assert what.split("; ") == [
        "1 of 5 examples are unusable [damaged]: k2 (its checksum)",
        "2 of 5 examples are unusable [unreadable]: example 1 (RuntimeError: the record is cut) "
        "and 1 more",
    ]


def test_a_damaged_index_is_a_finding(tmp_path):
    path = indexed(tmp_path / "a.tar", pairs(3))
    flip(Path(f"{path}.index"), 20)
    ((_, what),) = findings(f"tar:{path}")
    assert "a.tar.index is damaged" in what


def test_pictures_are_decoded_on_request(tmp_path):
    path = tar(tmp_path / "a.tar", [*pairs(3), ("9.png", png(9)[:40]), ("9.txt", b"cut")])
    assert findings(f"tar:{path}") == []
    ((where, what),) = findings(f"tar:{path}", decode=True)
    assert where == str(path) and "1 of 4" in what and "image_" in what
    assert list(tmp_path.iterdir()) == [path]  # looking changes nothing
    assert findings(f"tar:{path}?ignore=png", decode=True)[0].what.startswith("4 of 4 examples")


def test_other_kinds(tmp_path):
    records = tmp_path / "x.array_record"
    blobs = {"image": png(1)}
    write_records(records, [pack_record(key=str(i), text=("t",), blobs=blobs) for i in range(50)])
    assert findings(f"arrayrecord:{tmp_path}/*.array_record") == []
    flip(records, records.stat().st_size // 2)
    assert "SHA-256" in findings(f"arrayrecord:{tmp_path}/*.array_record")[0].what
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    for number in range(5):
        picture = png(number)[: 40 if number == 3 else None]
        (tmp_path / "pets" / "cat" / f"{number}.png").write_bytes(picture)
    assert findings(f"folder:{tmp_path}/pets") == []
    ((_, what),) = findings(f"folder:{tmp_path}/pets", decode=True)
    assert "1 of 5" in what and "cat/3.png" in what
    rows = [{"image": f"pets/cat/{i}.png", "text": "a"} for i in range(8)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ((_, what),) = findings(f"jsonl:{tmp_path}/t.jsonl")
    assert "3 of 8 examples are unusable [missing_image]: t.jsonl:5" in what


def test_a_bucket(monkeypatch, tmp_path):
    path = indexed(tmp_path / "a.tar", pairs(100))
    files = {"b/a.tar": path.read_bytes(), "b/a.tar.index": Path(f"{path}.index").read_bytes()}
    with bucket(monkeypatch, files) as (system, _):
        assert findings("tar:memory://b/*.tar") == []
        damage_payload(indexed(tmp_path / "c.tar", pairs(200)))
        flip(path, place_of(path, "00050.png")[0])
        system.pipe_file("/b/a.tar", path.read_bytes())
        ((where, what),) = findings("tar:memory://b/*.tar")
        assert where == "memory://b/a.tar" and "00050.png" in what


def test_command_line(tmp_path, command):
    for number in range(2):
        tar(tmp_path / f"{number}.tar", pairs(100))

    done = command("data", "index", f"tar:{tmp_path}/*.tar")
    assert done.code == 0 and "indexed 2 shards" in done.out, done.err
    cut(tmp_path / "1.tar")
    done = command("data", "check", f"tar:{tmp_path}/*.tar", "--workers=2")
    assert done.code == 1 and "Traceback" not in done.err
    assert f"{tmp_path}/1.tar: is cut short at byte" in done.out
    assert "checked 2 parts with 100 examples; damaged: 1" in done.out


def test_wrong_commands():
    with pytest.raises(ValueError, match="check, index"):
        data_cli.main(["clipjax data", "chekc", "tar:x"])
    with pytest.raises(ValueError, match="known are"):
        findings("nonsense:x")
    with pytest.raises(ValueError, match="only tar shards"):
        data_cli.index("folder:x")
