import concurrent.futures
import io
import json
import os
import pickle

import numpy as np
import pytest
from buckets import bucket
from PIL import Image

from clipjax.data import Loader, Preprocess, SampleError, make_source
from clipjax.data.packed import records
from clipjax.data.packed.records import RecordFile, pack_record, unpack_record, write_records
from clipjax.data.storage.files import find_files
from clipjax.data.storage.retrying import StorageError


def png(color):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(out, "PNG")
    return out.getvalue()


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def reason_of(source, index):
    with pytest.raises(SampleError) as caught:
        source[index]
    return caught.value.reason


# Folders


def test_a_class_a_folder(tmp_path):
    write(tmp_path, {"tabby_cat/1.png": png("red"), "dog/a.PNG": png("blue"), "dog/b.png": b"x"})
    source = make_source(f"folder:{tmp_path}")
    assert source.class_names == ("dog", "tabby cat")
    assert [source[i]["label"] for i in range(3)] == [0, 0, 1]
    assert source[2]["text"] == "tabby cat" and source[2]["key"] == "tabby_cat/1.png"
    assert (Preprocess(2)(source[2]["image"]) == [255, 0, 0]).all()
    named = make_source({"spec": f"folder:{tmp_path}", "class_names": ("a dog", "a cat")})
    assert named[0]["text"] == "a dog" and named.fingerprint() != source.fingerprint()
    with pytest.raises(ValueError, match="2 classes, class_names has 1 names"):
        make_source({"spec": f"folder:{tmp_path}", "class_names": ("a",)})


def test_a_caption_beside_each_picture(tmp_path, caplog):
    files = {"a.png": png("red"), "a.txt": "one\ntwo\n", "b.png": png("red"), "c.png": png("red")}
    files |= {"c.txt": " \n", "orphan.txt": "alone", "notes.md": "x", "d.png": png("red")}
    source = make_source(f"folder:{write(tmp_path, {**files, 'd.txt': b'caf' + bytes([233])})}")
    assert source.class_names is None and len(source) == 4
    assert source[0]["text"] == ("one", "two") and "label" not in source[0]
    assert reason_of(source, 1) == "missing_text"
    assert reason_of(source, 2) == "text_empty"
    assert reason_of(source, 3) == "text_encoding"
    assert "orphan.txt" in caplog.text and "1 .md" in caplog.text


def test_captions_are_lines_and_their_files_may_be_in_capitals(tmp_path, caplog):
    write(tmp_path, {"1.png": png("red"), "1.TXT": "a\u2028dog\u0085and\fa cat\r\na fox\r\n"})
    write(tmp_path, {"2.PNG": png("red"), "2.txt": "b", "3.Txt": "alone"})
    source = make_source(f"folder:{tmp_path}")
    assert source[0]["text"] == ("a\u2028dog\u0085and\fa cat", "a fox") and source[1]["text"] == "b"
    assert "1 captions have no picture, e.g. 3.Txt" in caplog.text
    before = source.fingerprint()
    write(tmp_path, {"1.TXT": "a\u2028dog"})
    assert make_source(f"folder:{tmp_path}").fingerprint() != before


def test_a_second_caption_file_of_a_picture_is_told(tmp_path, caplog):
    write(tmp_path, {"1.png": png("red"), "1.txt": "lower", "1.TXT": "upper"})
    assert make_source(f"folder:{tmp_path}")[0]["text"] == "lower"
    assert "1 captions are not used, as their pictures have another" in caplog.text
    assert "e.g. 1.TXT" in caplog.text


def test_names_that_are_not_utf8_are_left_out_and_told(tmp_path, caplog):
    write(tmp_path, {"dog/1.png": png("red")})
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name in (b"/1.png", b"/2.png"):
        with open(folder + name, "wb") as file:
            file.write(png("red"))
    source = make_source(f"folder:{tmp_path}")
    assert list(source.keys()) == ["dog/1.png"] and len(source.fingerprint()) == 64
    assert "2 files are not used, as their names are not UTF-8" in caplog.text
    assert "caf\\xe9/1.png" in caplog.text


def test_groups_are_the_folders_between_class_and_picture(tmp_path):
    write(
        tmp_path / "a", {f"chair/{place}/0.jpg": png(0) for place in ("Asia/Nepal", "Europe/Malta")}
    )
    source = make_source(f"folder:{tmp_path / 'a'}?group_field=region,country")
    assert source[1]["groups"] == {"region": "Europe", "country": "Malta"}
    less = make_source(f"folder:{tmp_path / 'a'}?group_field=region")
    assert source.fingerprint() != less.fingerprint() and less[1]["groups"] == {"region": "Europe"}
    told = r"1 of 3 pictures do not stand in 3, e.g. chair/Asia/1.jpg"
    write(tmp_path / "a", {"chair/Asia/1.jpg": png(0)})
    with pytest.raises(ValueError, match=told):
        make_source(f"folder:{tmp_path / 'a'}?group_field=region,country")
    write(tmp_path / "b", {"1.jpg": png(0), "1.txt": b"one"})
    with pytest.raises(ValueError, match="has captions: group_field are of no use"):
        make_source(f"folder:{tmp_path / 'b'}?group_field=region")


def test_a_link_that_leads_in_a_circle_is_named(tmp_path):
    write(tmp_path, {"dog/1.png": png("red")})
    (tmp_path / "dog" / "again").symlink_to("..")
    with pytest.raises(ValueError, match=f"^{tmp_path}/dog/again is a link that leads in a circle"):
        make_source(f"folder:{tmp_path}")


def test_fingerprint_follows_the_content(tmp_path):
    write(tmp_path, {"x/1.png": png("red"), "y/1.png": png("blue")})
    before = make_source(f"folder:{tmp_path}").fingerprint()
    assert make_source(f"folder:{tmp_path}").fingerprint() == before
    write(tmp_path, {"y/2.png": png("blue")})
    assert make_source(f"folder:{tmp_path}").fingerprint() != before


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no picture"):
        make_source(f"folder:{tmp_path}")
    write(tmp_path, {"loose.png": png("red"), "x/1.png": png("red")})
    with pytest.raises(ValueError, match="in no class folder"):
        make_source(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="layout"):
        make_source({"spec": f"folder:{tmp_path}", "layout": "tree"})


def test_a_picture_that_does_not_decode_is_replaced_and_named(tmp_path):
    files = {f"x/{i}.png": png((i, 0, 0)) for i in range(8)}
    write(tmp_path, {**files, "x/3.png": files["x/3.png"][:-24]})
    source = make_source(f"folder:{tmp_path}")
    with Loader(
        source, (), lambda texts: np.zeros((len(texts), 1), np.int32), batch_size=8, seed=0,
        preprocess=Preprocess(2), max_bad_fraction=1.0,
    ) as loader:  # fmt: skip
        seen = loader.batch(0)["image"][:, 0, 0, 0].tolist()
        assert 3 not in seen and len(set(seen)) == 7
        assert loader.counts() == {"image_undecodable": 1}
        assert loader.bad_examples()[0].key == "x/3.png"


# Tables


def test_csv(tmp_path):
    table = 'filepath,title,kind\na.png,"a, b",x\nnone.png,c,y\n,d,x\na.png,,x\n'
    write(tmp_path, {"t.csv": table, "a.png": png("red")})
    source = make_source(f"csv:{tmp_path}/t.csv")
    assert len(source) == 4 and source[0]["text"] == "a, b" and source[0]["key"] == "t.csv:0"
    assert source[0]["image"] == png("red")
    assert [reason_of(source, i) for i in (1, 2, 3)] == [
        "missing_image",
        "missing_image",
        "missing_text",
    ]
    labelled = make_source({"spec": f"csv:{tmp_path}/t.csv", "label_field": "kind"})
    assert labelled.class_names == ("x", "y") and labelled[0]["label"] == 0
    assert labelled.fingerprint() != source.fingerprint()


def test_the_root_belongs_to_the_fingerprint(tmp_path):
    for place in ("one", "two"):
        root = tmp_path / place
        write(root, {"t.csv": "image,text\na.png,x\n", "a.png": png("red"), "b/a.png": png("blue")})
    spec = f"csv:{tmp_path}/one/t.csv"
    source, other = make_source(spec), make_source(f"{spec}?root={tmp_path}/one/b")
    assert source[0]["image"] != other[0]["image"]
    assert source.fingerprint() != other.fingerprint()
    # The folder itself, and the same data elsewhere, are no other data.
    assert make_source(f"{spec}?root={tmp_path}/one/").fingerprint() == source.fingerprint()
    moved = make_source(f"csv:{tmp_path}/two/t.csv?root={tmp_path}/two/b")
    assert moved.fingerprint() == other.fingerprint()


def test_jsonl(tmp_path):
    rows = [{"image": "i/a.png", "caption": ["one", "two"]}, {"image": "i/a.png", "caption": 3}]
    rows.append({"image": "http://example.com/a.png", "caption": "x"})
    text = "\n".join(map(json.dumps, rows))
    write(tmp_path, {"t.jsonl": text, "i/a.png": png("red")})
    source = make_source(f"jsonl:{tmp_path}/t.jsonl")
    assert source[0]["text"] == ("one", "two")
    assert reason_of(source, 1) == "missing_text"
    with pytest.raises(SampleError, match=r"scheme http://.*path_refused"):
        source[2]


def test_tables_may_not_name_files_elsewhere(tmp_path):
    outside = write(tmp_path / "outside", {"b.png": png("blue")}) / "b.png"
    table = f"image,text\n../outside/b.png,x\n{outside},y\na.png,z\n{tmp_path}/t/a.png,z\n"
    write(tmp_path / "t", {"t.csv": table, "a.png": png("red")})
    source = make_source(f"csv:{tmp_path}/t/t.csv")
    assert source[2]["image"] == source[3]["image"] == png("red")
    for index in (0, 1):
        with pytest.raises(SampleError, match=r"points outside .*\?root=DIR.*path_refused"):
            source[index]
    assert make_source(f"csv:{tmp_path}/t/t.csv?root={tmp_path}")[1]["image"] == png("blue")


def test_folders_and_tables_in_a_bucket(monkeypatch):
    files = {"b/p/x/1.png": png("red"), "b/p/y/d/2.png": png("blue")}
    files |= {"b/t.csv": b"image,text\np/x/1.png,one\np/no.png,two\n"}
    with bucket(monkeypatch, files) as (system, delays):
        folder, table = make_source("folder:memory://b/p"), make_source("csv:memory://b/t.csv")
        assert folder.class_names == ("x", "y") and folder[1]["key"] == "y/d/2.png"
        system.failures = [ConnectionResetError("reset")] * 2
        assert folder[1]["image"] == png("blue") and len(delays) == 2
        assert table[0]["image"] == png("red") and reason_of(table, 1) == "missing_image"
        # An outage stops the run: it is nothing that an example can help.
        system.failures = [TimeoutError("slow")] * 50
        with pytest.raises(StorageError, match="6 times"):
            table[0]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.csv", "a,b\n1,2\n", "columns a, b"),
        ("t.csv", "image,text\n", "no row"),
        ("t.csv", "image,text\na,b,c\n", "line 2 has 3 cells"),
        ("t.csv", b"image,text\na,\xff\n", "UTF-8"),
        ("t.jsonl", "{", "line 1"),
        ("t.jsonl", "[1]", "no object"),
        ("t.parquet", "x", ".csv, .tsv or .jsonl"),
    ],
)
def test_tables_that_are_none(tmp_path, name, content, message):
    write(tmp_path, {name: content})
    with pytest.raises(ValueError, match=message):
        make_source(f"csv:{tmp_path}/{name}")


# Packed records


def record(number, **options):
    blobs = {"image": png((number, 0, 0)), "other": b"12"}
    return pack_record(key=f"k{number}", text=(f"text {number}", "zwei é"), blobs=blobs, **options)


def pack(path, numbers, **about):
    return write_records(path, (record(n, label=n % 2) for n in numbers), **about)


def test_packed_records(tmp_path):
    for shard in range(3):
        pack(tmp_path / f"x-{shard:02d}.array_record", range(4 * shard, 4 * shard + 4))
    source = make_source(f"arrayrecord:{tmp_path}/x-{{00..02}}.array_record")
    assert len(source) == 12
    keys = ["x-00.array_record/k0", "x-00.array_record/k3", "x-01.array_record/k4"]
    assert [source[i]["key"] for i in (0, 3, 4)] == keys
    assert source[5]["text"] == ("text 5", "zwei é") and source[5]["label"] == 1
    assert (Preprocess(2)(source[7]["image"])[..., 0] == 7).all()
    same = make_source(f"arrayrecord:{tmp_path}/*.array_record")
    assert same.fingerprint() == source.fingerprint()
    assert pickle.loads(pickle.dumps(source))[7] == source[7]  # for worker processes
    with pytest.raises(ValueError, match="class_names"):
        pack(tmp_path / "y.array_record", range(2), class_names=("a", "b"))
        make_source(f"arrayrecord:{tmp_path}/*.array_record")
    assert make_source(f"arrayrecord:{tmp_path}/y.array_record").class_names == ("a", "b")


def test_many_threads_read_the_same(tmp_path):
    pack(tmp_path / "x.array_record", range(200))
    source = make_source(f"arrayrecord:{tmp_path}/x.array_record")
    order = np.random.Generator(np.random.Philox(key=0)).integers(0, 200, 3000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda i: source[i]["key"], order))
    assert keys == [f"x.array_record/k{i}" for i in order]


def test_same_input_same_bytes(tmp_path):
    digests = {pack(tmp_path / f"{i}.array_record", range(5))["sha256"] for i in range(2)}
    assert len(digests) == 1


def test_damage_to_packed_records(tmp_path):
    path = tmp_path / "x.array_record"
    pack(path, range(50))
    content = path.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"manifest says"):
            RecordFile(path)
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="damaged"):
        RecordFile(path)
    path.write_bytes(content)
    assert len(RecordFile(path)) == 50
    manifest = path.with_name(path.name + ".json")
    manifest.write_text(manifest.read_text().replace('"count": 50', '"count": 49'))
    with pytest.raises(ValueError, match="opens with 50 records"):
        RecordFile(path)
    manifest.write_text('{"format": "clipjax.records/1", "count": "50", "bytes": 7}')
    with pytest.raises(ValueError, match=r"x\.array_record\.json does not say count, sha256"):
        RecordFile(path)
    manifest.unlink()
    with pytest.raises(ValueError, match="no manifest"):
        RecordFile(path)


def test_packed_records_of_equal_file_names_have_keys_of_their_own(tmp_path):
    for number in range(2):
        (tmp_path / f"c{number}").mkdir()
        pack(tmp_path / f"c{number}" / "x.array_record", range(2))
    source = make_source(f"arrayrecord:{tmp_path}/c{{0..1}}/x.array_record")
    names = ["c0/x.array_record/k0", "c0/x.array_record/k1"]
    names += ["c1/x.array_record/k0", "c1/x.array_record/k1"]
    assert [source[i]["key"] for i in range(4)] == names


def test_a_shard_of_packed_records_is_named_by_its_bad_examples(tmp_path):
    for shard in range(3):
        pack(tmp_path / f"{shard}.array_record", range(4 * shard, 4 * shard + 4))
    source = make_source(f"arrayrecord:{tmp_path}/*.array_record?blob=other")  # no pictures
    with (
        Loader(
            source, (), lambda texts: np.zeros((len(texts), 1), np.int32), batch_size=12, seed=0,
            preprocess=Preprocess(2), max_bad_fraction=0.01, bad_window=100,
        ) as loader,
        pytest.raises(ValueError, match=r"Most of them are in \d\.array_record \(\d+\)"),
    ):  # fmt: skip
        loader.batch(0)


def test_a_disk_that_fails_is_no_damaged_record(tmp_path, monkeypatch):
    pack(tmp_path / "x.array_record", range(4))
    message = "chunk data hash mismatch"

    class Reader:
        def __init__(self, *_):
            pass

        def num_records(self):
            return 4

        def read(self, indices):
            raise RuntimeError(message)

    monkeypatch.setattr(records.array_record_module, "ArrayRecordReader", Reader)
    source = make_source(f"arrayrecord:{tmp_path}/x.array_record")
    with pytest.raises(SampleError, match=r"x\.array_record:2: chunk data .*record_damaged"):
        source[2]
    message = "pread() failed: Input/output error"
    with pytest.raises(StorageError, match=r"x\.array_record:2: pread\(\) failed"):
        source[2]


def test_a_record_that_is_cut_short():
    whole = record(1)
    assert unpack_record(whole)["key"] == "k1"
    for wrong in (whole[:-1], whole + b"x", b"", b"PK\3\4" + whole):
        with pytest.raises(ValueError):
            unpack_record(wrong)


def test_patterns(tmp_path):
    write(tmp_path, {f"a-{i:03d}-of-010": "x" for i in range(10)})
    assert [f.path.name for f in find_files(f"{tmp_path}/a-{{008..009}}-of-010")] == [
        "a-008-of-010",
        "a-009-of-010",
    ]
    assert len(find_files(f"{tmp_path}/a-00?-of-010")) == 10
    for wrong in (f"{tmp_path}/a-{{008..012}}-of-010", f"{tmp_path}/b*", "ftp://x/y", ""):
        with pytest.raises(ValueError):
            find_files(wrong)


def test_a_wildcard_finds_no_hidden_files(tmp_path, caplog):
    write(tmp_path, {"0.tar": "x", "._0.tar": "x", "1.tar": "x"})
    caplog.set_level("INFO")
    assert [f.path.name for f in find_files(f"{tmp_path}/*.tar")] == ["0.tar", "1.tar"]
    assert "*.tar: 1 hidden files are not used" in caplog.text
    assert [f.path.name for f in find_files(f"{tmp_path}/.*.tar")] == ["._0.tar"]


def test_synthetic_is_deterministic_and_labelled():
    first, again = make_source("synthetic:100"), make_source("synthetic:100")
    for i in range(100):
        np.testing.assert_array_equal(first[i]["image"], again[i]["image"])
        name = first.class_names[first[i]["label"]]
        assert first[i]["text"].endswith(name)
    assert len({first[i]["image"].tobytes() for i in range(100)}) == 100
    assert first.fingerprint() != make_source("synthetic:101").fingerprint()
