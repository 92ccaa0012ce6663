import concurrent.futures
import errno
import json
import pickle
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png
from buckets import bucket

from clipjax.data import SampleError, make_source
from clipjax.data.inspect.checking import check
from clipjax.data.packing.packer import Packing, pack
from clipjax.data.sources import row_groups
from clipjax.data.storage import file_reader
from clipjax.data.storage.retrying import StorageError

N = 40


def write(path, columns, *, rows=8, metadata=None, **options):
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows, **options)
    return path


def columns(start=0, count=N):
    numbers = range(start, start + count)
    return {"image": [png(i) for i in numbers], "text": [f"number {i}" for i in numbers]}


def reason_of(source, index):
    with pytest.raises(SampleError) as caught:
        source[index]
    return caught.value.reason


def test_bytes_and_captions(tmp_path):
    for part in range(3):
        write(tmp_path / f"{part}.parquet", columns(N * part))
    source = make_source(f"parquet:{tmp_path}/{{0..2}}.parquet")
    assert len(source) == 3 * N
    for index in (0, 7, 8, N - 1, N, 2 * N + 9, 3 * N - 1):
        example = source[index]
        assert example["image"] == png(index) and example["text"] == f"number {index}"
        assert example["key"] == f"{index // N}.parquet:{index % N}"
    assert list(source.keys()) == [source[i]["key"] for i in range(3 * N)]
    assert pickle.loads(pickle.dumps(source))[N] == source[N]
    with pytest.raises(IndexError):
        source[3 * N]
    again = make_source(f"parquet:{tmp_path}/*.parquet")
    assert again.fingerprint() == source.fingerprint()
    write(tmp_path / "2.parquet", columns(5))
    assert make_source(f"parquet:{tmp_path}/*.parquet").fingerprint() != source.fingerprint()


def test_paths_and_structs(tmp_path):
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "1.png").write_bytes(png(1))
    paths = {"filepath": ["i/1.png", "i/2.png", None, "../1.png"], "caption": ["a", "b", "c", "d"]}
    source = make_source(f"parquet:{write(tmp_path / 'a.parquet', paths)}")
    assert source[0]["image"] == png(1)
    assert [reason_of(source, i) for i in (1, 2)] == ["missing_image", "missing_image"]
    assert reason_of(source, 3) == "path_refused"
    structs = [{"bytes": png(3), "path": "x.png"}, {"bytes": None, "path": "i/1.png"}, None]
    path = write(tmp_path / "b.parquet", {"image": structs, "text": ["a", "b", "c"]})
    source = make_source(f"parquet:{path}")
    assert source[0]["image"] == png(3) and source[1]["image"] == png(1)
    assert reason_of(source, 2) == "missing_image"


def test_several_captions(tmp_path):
    kind = pa.map_(pa.string(), pa.string())
    maps = pa.array([[("en", "cat"), ("de", "Katze")], [("en", "dog")], []], kind)
    structs = [
        {"en": ["cat", "kitten"], "de": None},
        {"en": [], "de": ["Hund"]},
        {"en": None, "de": None},
    ]
    lists = [["a", "b"], ["c"], []]
    data = {"image": [png(i) for i in range(3)], "m": maps, "s": structs, "l": lists}
    path = write(tmp_path / "a.parquet", data)

    def texts(**options):
        source = make_source({"spec": f"parquet:{path}", **options})
        found = []
        for i in range(3):
            try:
                found.append(source[i]["text"])
            except SampleError as error:
                found.append(error.reason)
        return found

    assert texts(text_field="l") == [("a", "b"), "c", "missing_text"]
    assert texts(text_field="m") == [{"en": "cat", "de": "Katze"}, {"en": "dog"}, "missing_text"]
    assert texts(text_field="s") == [{"en": ("cat", "kitten")}, {"de": "Hund"}, "missing_text"]
    german = ["Katze", "filtered_language", "filtered_language"]
    assert texts(text_field="m", language="de") == german
    both = texts(text_field=["l", "m"])
    assert both[0]["l"] == ("a", "b")


def test_captions_of_bytes(tmp_path):
    binary = pa.array([b"caf\xc3\xa9", b"caf\xe9", None, b""])
    data = {"image": [png(i) for i in range(4)], "text": binary}
    source = make_source(f"parquet:{write(tmp_path / 'a.parquet', data)}")
    assert source[0]["text"] == "caf\u00e9"
    reasons = ["text_encoding", "missing_text", "missing_text"]
    assert [reason_of(source, i) for i in (1, 2, 3)] == reasons
    # A file may call text what is none.
    data["text"] = pa.Array.from_buffers(pa.string(), 4, binary.buffers())
    source = make_source(f"parquet:{write(tmp_path / 'b.parquet', data)}")
    assert source[0]["text"] == "caf\u00e9" and reason_of(source, 1) == "text_encoding"


def test_failed_downloads_of_img2dataset_are_left_out_by_packing(tmp_path):
    pictures = [png(i) if i % 3 else None for i in range(9)]
    data = {"caption": [f"number {i}" for i in range(9)], "key": [f"{i:09d}" for i in range(9)]}
    data |= {"status": ["success" if p else "failed_to_download" for p in pictures]}
    write(tmp_path / "in" / "00000.parquet", {**data, "jpg": pictures})
    source = make_source(f"parquet:{tmp_path}/in/*.parquet")
    assert reason_of(source, 3) == "filtered_download"
    list(pack(source, tmp_path / "out", Packing(), workers=1))
    packed = make_source(f"tar:{tmp_path}/out/*.tar")
    assert [packed[i]["text"] for i in range(6)] == [f"number {i}" for i in (1, 2, 4, 5, 7, 8)]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(packed) == manifest["count"] == 6 and manifest["skipped"] == {"filtered_download": 3}


def test_labels(tmp_path):
    data = {**columns(0, 3), "kind": ["cat", "dog", "cat"], "number": [1, 0, 7]}
    features = {"number": {"names": ["red", "blue"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path = write(tmp_path / "a.parquet", data, metadata=metadata)
    source = make_source(f"parquet:{path}?label_field=kind")
    assert source.class_names == ("cat", "dog") and [source[i]["label"] for i in range(3)] == [
        0,
        1,
        0,
    ]
    source = make_source(f"parquet:{path}?label_field=number")
    assert source.class_names == ("red", "blue") and source[0]["label"] == 1
    assert reason_of(source, 2) == "label"
    plain = write(tmp_path / "b.parquet", data)
    unnamed = make_source(f"parquet:{plain}?label_field=number")
    assert unnamed.class_names is None and unnamed[2]["label"] == 7
    named = make_source(f"parquet:{plain}?label_field=number&class_names=a,b,c,d,e,f,g,h")
    assert named[2]["label"] == 7


def test_labels_that_are_numbers_in_text(tmp_path):
    data = {**columns(0, 4), "kind": ["10", "2", None, ""]}
    path = write(tmp_path / "a.parquet", data)
    source = make_source(f"parquet:{path}?label_field=kind")
    assert source.class_names is None and source[0]["label"] == 10
    names = ",".join(f"name{i}" for i in range(11))
    source = make_source(f"parquet:{path}?label_field=kind&class_names={names}")
    assert [source[i]["label"] for i in range(2)] == [10, 2]
    assert [reason_of(source, i) for i in (2, 3)] == ["label", "label"]


def test_groups_are_columns(tmp_path):
    groups = {
        "region": ["Asia", None] * 4,
        "year": [2012.0, 2016.0] * 4,
        "cell": [b"a", b"\xff"] * 4,
    }
    spec = f"parquet:{write(tmp_path / 'a.parquet', columns(count=8) | groups)}"
    source = make_source(f"{spec}?group_field=region,year")
    assert source.group_names == ("region", "year")
    assert source[0]["groups"] == {"region": "Asia", "year": "2012"}
    assert source[1]["groups"] == {"region": "", "year": "2016"}  # which an evaluation refuses
    assert source.fingerprint() != make_source(spec).fingerprint()
    assert "groups" not in make_source(spec)[0]
    assert reason_of(make_source(f"{spec}?group_field=cell"), 1) == "text_encoding"
    with pytest.raises(ValueError, match=r"none of them income: give \?group_field=NAME"):
        make_source(f"{spec}?group_field=income")


def test_the_root_belongs_to_the_fingerprint(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": ["1.png"], "text": ["x"]})
    plain, same, other = (
        make_source(f"parquet:{path}{root}").fingerprint()
        for root in ("", f"?root={tmp_path}", f"?root={tmp_path}/b")
    )
    assert plain == same != other


def test_a_fault_of_the_machine_is_no_damaged_group(tmp_path, monkeypatch):
    source = make_source(f"parquet:{write(tmp_path / 'a.parquet', columns())}")
    plain = row_groups.read

    def failing(path, offset, size):
        raise error

    for error in (
        OSError(errno.EMFILE, "too many open files"),
        OSError(errno.ENOMEM, "no memory"),
        pa.ArrowMemoryError("no memory"),
        StorageError("failed 6 times"),
    ):
        monkeypatch.setattr(file_reader, "read", failing)
        with pytest.raises(type(error)) as caught:
            source[3]
        assert not isinstance(caught.value, SampleError)
        with pytest.raises(type(error)):
            make_source(f"parquet:{tmp_path}/a.parquet")
        monkeypatch.setattr(file_reader, "read", plain)
        assert source[3]["image"] == png(3)
        source = pickle.loads(pickle.dumps(source))  # which has read nothing


@pytest.fixture
def loads(monkeypatch):
    """The numbers of the row groups that are read from a file, as they are read."""
    found, plain = [], pq.ParquetFile.iter_batches

    def counted(self, *arguments, row_groups, **options):
        found.extend(row_groups)
        time.sleep(0.001)  # another thread's turn
        return plain(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    return found


def large_groups(tmp_path, cache_mb):
    """Ten row groups of 40 kB, in rows of 10."""
    big = {"image": [bytes([i]) * 10_000 for i in range(N)], "text": ["x"] * N}
    path = write(tmp_path / "a.parquet", big, rows=4)
    return make_source(f"parquet:{path}?cache_mb={cache_mb}")


def test_memory_is_bounded_and_groups_are_read_once_in_order(tmp_path, loads):
    source = large_groups(tmp_path, 0.2)
    before = pa.total_allocated_bytes()
    for i in range(N):
        assert source[i]["image"][0] == i
        assert pa.total_allocated_bytes() - before <= 200_000
    assert pa.total_allocated_bytes() - before > 150_000
    assert loads == list(range(10))
    for group in (9, 8, 7, 6, 0):  # four are held, and the fifth had to go
        source[4 * group]
    assert loads[10:] == [0]
    small = large_groups(tmp_path, 0)  # holds one
    for index in (3, 2, 4, 3):
        assert small[index]["image"][0] == index
    assert loads[11:] == [0, 1, 0]


def test_threads_share_row_groups(tmp_path, loads):
    source = make_source(f"parquet:{write(tmp_path / 'a.parquet', columns())}")
    wrong = []

    def read_all():
        for i in range(N):
            if source[i]["image"] != png(i):
                wrong.append(i)

    threads = [threading.Thread(target=read_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and sorted(loads) == list(range(5))


@pytest.mark.parametrize("held", [1, 2])
def test_threads_in_random_order_leave_room_for_as_many_groups(tmp_path, loads, held):
    """What two of them loaded at once counts once, and what has gone not at all."""
    source = large_groups(tmp_path, 0.05 * held)

    def read(seed):
        for index in np.random.default_rng(seed).integers(0, N, 60).tolist():
            assert source[index]["image"][0] == index

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    for group in range(held):
        source[4 * group]
    loads.clear()
    for group in range(held):
        source[4 * group]
    assert loads == []
    for group in (held, 0):
        source[4 * group]
    assert loads == [held, 0]


def test_damage(tmp_path):
    path = write(tmp_path / "a.parquet", columns(), write_page_checksum=True, compression="none")
    content = path.read_bytes()
    place = content.index(png(20)) + 30
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    source = make_source(f"parquet:{path}")
    assert source[0]["image"] == png(0)
    assert reason_of(source, 20) == "damaged"
    ((checked, _),) = check(f"parquet:{tmp_path}/*.parquet")
    assert checked.findings[0].where == str(path)
    assert "8 of 40 examples are unusable [damaged]" in checked.findings[0].what
    for length in (0, 3, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a.parquet is no whole Parquet file"):
            make_source(f"parquet:{path}")


def test_what_is_no_dataset(tmp_path):
    path = write(tmp_path / "a.parquet", {"a": [1], "image": [2], "text": ["t"]})
    for options, message in (
        ("", "int64 in 'image'"),
        ("?image_field=b", "a, image, text"),
        ("?image_field=text&cache_mb=-1", "cache_mb=-1 in the SPEC"),
        ("?image_field=text&cache_mb=nan", "cache_mb = nan: expected a number"),
        ("?image_field=text&text_field=b", "text_field"),
        ("?image_field=text&label_field=b", "label_field"),
    ):
        with pytest.raises(ValueError, match=message):
            make_source(f"parquet:{path}{options}")
    write(tmp_path / "b.parquet", columns())
    with pytest.raises(ValueError, match="other columns"):
        make_source(f"parquet:{tmp_path}/*.parquet?image_field=text")
    nothing = {name: pa.array([], pa.string()) for name in ("image", "text")}
    with pytest.raises(ValueError, match="empty"):
        make_source(f"parquet:{write(tmp_path / 'c.parquet', nothing)}")


def test_large_row_groups_are_told(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "a.parquet", columns())
    make_source(f"parquet:{path}")
    assert "row groups" not in caplog.text
    monkeypatch.setattr(row_groups, "LARGE_GROUP", 100)
    make_source(f"parquet:{path}")
    assert "row groups of 0 MB" in caplog.text and "pack" in caplog.text


def test_a_bucket(tmp_path, monkeypatch):
    content = write(tmp_path / "a.parquet", columns()).read_bytes()
    with bucket(monkeypatch, {"b/a.parquet": content}) as (system, delays):
        source = make_source("parquet:memory://b/*.parquet")
        system.failures, system.short = [ConnectionResetError("reset")], 1
        assert source[9]["image"] == png(9) and len(delays) == 2
        system.failures = [TimeoutError("slow")] * 20
        with pytest.raises(OSError, match=r"memory://b/a.parquet failed 6 times"):
            source[30]


def test_maps_in_json_lines(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1))
    row = {"image": "1.png", "text": {"en": "cat", "de": ["Katze", "Mieze"], "fr": ""}}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    assert make_source(f"jsonl:{tmp_path}/t.jsonl")[0]["text"] == {
        "en": "cat",
        "de": ("Katze", "Mieze"),
    }
    assert make_source(f"jsonl:{tmp_path}/t.jsonl?language=en")[0]["text"] == "cat"
    assert reason_of(make_source(f"jsonl:{tmp_path}/t.jsonl?language=fr"), 0) == "filtered_language"


def test_what_unpacks_to_far_more_than_the_file_is_damage(tmp_path, monkeypatch):
    """A page may name one value as often as it likes: 500 bytes were 20 gigabytes."""
    numbers, value = pa.array([0] * 2000, pa.int32()), pa.array([bytes(1 << 14)])
    table = {"image": pa.DictionaryArray.from_arrays(numbers, value), "text": ["a"] * 2000}
    path = write(tmp_path / "bomb.parquet", table, rows=2000, store_schema=False)
    assert path.stat().st_size < 1 << 14
    source = make_source(f"parquet:{path}")
    assert source[1999]["image"] == bytes(1 << 14)  # 32 MB are none
    monkeypatch.setattr(row_groups, "MIN_UNPACKED", 1 << 22)
    source = make_source(f"parquet:{path}")
    assert reason_of(source, 0) == "damaged"
    monkeypatch.setattr(row_groups, "MAX_RATIO", 1 << 20)
    assert make_source(f"parquet:{path}")[0]["text"] == "a"
    monkeypatch.setattr(row_groups, "MAX_ROWS", 1)
    with pytest.raises(ValueError, match="and says 2,000 rows"):
        make_source(f"parquet:{path}")


@pytest.mark.parametrize(
    "features",
    [
        *(b"[" * 10**5, b"\xff", b"9" * 10**4, b"[]"),
        b'{"info": {"features": {"label": {"names": "cat"}}}}',
        b'{"info": {"features": {"label": {"names": [{"a": 1}, 2]}}}}',
    ],
)
def test_names_in_the_schema_that_are_none(tmp_path, features):
    labels = {"image": [png(0)] * 2, "text": ["a"] * 2, "label": [0, 1]}
    path = write(tmp_path / "a.parquet", labels, metadata={"huggingface": features})
    source = make_source(f"parquet:{path}?label_field=label")
    assert source.class_names is None and source[1]["label"] == 1
    lists = {**labels, "label": [["a"], ["b"]]}
    path = write(tmp_path / "lists.parquet", lists)
    with pytest.raises(ValueError, match="has no class in 'label'"):
        make_source(f"parquet:{path}?label_field=label")


@pytest.mark.parametrize("kind", [pa.date32(), pa.duration("s"), pa.timestamp("ns")])
def test_dates_that_there_are_not(tmp_path, kind):
    number = 2**30 if kind == pa.date32() else 2**62 + 1
    path = write(tmp_path / "a.parquet", {"image": [png(0)], "text": pa.array([number], kind)})
    assert reason_of(make_source(f"parquet:{path}"), 0) == "damaged"
