import json
import os
import pickle
import stat
import tarfile
import threading
import zlib
from pathlib import Path

import pytest
from archives import pairs, png, tar, tar_bytes
from buckets import bucket
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.data import SampleError, make_source
from clipjax.data.packing.examples import Packing
from clipjax.data.packing.packer import pack
from clipjax.data.sources import tar as tar_source
from clipjax.data.storage.files import find_files
from clipjax.data.storage.files import stat as stat_file
from clipjax.data.storage.paths import data_path
from clipjax.data.tar import indexing as tar_indexing
from clipjax.data.tar.index import IndexDamagedError, TarIndex, make_index
from clipjax.data.tar.indexing import index_beside, open_indexes, sidecar_of
from clipjax.data.transforms.captions import ChooseCaption

pytestmark = pytest.mark.usefixtures("cache")


def shard_file(path):
    return stat_file(data_path(str(path)))


def index_path(path):
    return Path(f"{path}.index")


def test_shards(tmp_path):
    for shard in range(2):
        tar(tmp_path / f"{shard:03d}.tar", pairs(5, 5 * shard))
    source = make_source(f"tar:{tmp_path}/{{000..001}}.tar")
    assert len(source) == 10
    for i in range(10):
        assert source[i]["image"] == png(i) and source[i]["text"] == f"picture {i}"
        assert source[i]["key"] == f"{i // 5:03d}.tar/{i:05d}"
    assert list(source.keys()) == [source[i]["key"] for i in range(10)]
    assert source.fingerprint() == make_source(f"tar:{tmp_path}/*.tar").fingerprint()
    with pytest.raises(IndexError):
        source[10]


def test_shards_of_equal_names_have_keys_of_their_own(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        tar(tmp_path / folder / "0.tar", pairs(2))
    (tmp_path / "c0").mkdir()
    for number in range(2):
        (tmp_path / f"c{number}").mkdir(exist_ok=True)
        tar(tmp_path / f"c{number}" / "0.tar", pairs(1))
    source = make_source(f"tar:{tmp_path}/c{{0..1}}/0.tar")
    assert list(source.keys()) == ["c0/0.tar/00000", "c1/0.tar/00000"]


def test_json_and_classes(tmp_path):
    members = [("0.png", png(0)), ("0.json", json.dumps({"caption": "from json"}).encode())]
    members += [("1.png", png(1)), ("1.cls", b"1"), ("2.png", png(2)), ("2.cls", b"2")]
    tar(tmp_path / "a.tar", members)
    source = make_source({"spec": f"tar:{tmp_path}/a.tar", "class_names": ("cat", "dog")})
    assert source[0]["text"] == "from json"
    assert source[1]["text"] == "dog" and source[1]["label"] == 1
    with pytest.raises(ValueError, match=r"class is 2, and 2 names are for 0 to 1.*first_label=1"):
        source[2]


def test_classes_without_names_are_enough_for_an_evaluation(tmp_path, caplog):
    tar(
        tmp_path / "a.tar", [("0.png", png(0)), ("0.cls", b"7"), ("1.png", png(1)), ("1.cls", b"x")]
    )
    source = make_source(f"tar:{tmp_path}/a.tar")
    assert source.class_names is None and not caplog.text
    assert (source[0]["label"], source[0]["text"]) == (7, "")
    with pytest.raises(SampleError, match=r"label has no words.*class_names=FILE"):
        ChooseCaption()(source[0], None)
    with pytest.raises(SampleError, match="the class is 'x'"):
        source[1]
    # A caption is worth more than a label that nothing names.
    tar(tmp_path / "b.tar", [("0.png", png(0)), ("0.cls", b"x"), ("0.txt", b"words")])
    assert make_source(f"tar:{tmp_path}/b.tar")[0]["text"] == "words"


def test_class_names_come_from_a_file_or_by_name(tmp_path):
    tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.cls", b"1")])
    (tmp_path / "names.txt").write_text("tabby cat\nold dog\n", encoding="utf-8")
    spec = f"tar:{tmp_path}/a.tar?class_names="
    assert make_source(f"{spec}{tmp_path}/names.txt")[0]["text"] == "old dog"
    assert make_source(f"{spec}imagenet")[0]["text"] == "goldfish"
    with pytest.raises(ValueError, match="'abc' are neither a known name nor a file"):
        make_source(f"{spec}abc")


def test_numbers_that_are_too_long_are_no_crash(tmp_path):
    digits = b"1" * 5000
    members = [("0.png", png(0)), ("0.json", b'{"caption": "x", "n": ' + digits + b"}")]
    members += [("1.png", png(1)), ("1.cls", digits), ("2.png", png(2)), ("2.cls", b"0001")]
    members += [("3.png", png(3)), ("3.json", b"[" * 100_000)]
    tar(tmp_path / "a.tar", members)
    source = make_source(f"tar:{tmp_path}/a.tar?class_names=cat,dog")
    reasons = []
    for index in (0, 1, 3):
        with pytest.raises(SampleError) as caught:
            source[index]
        reasons.append(caught.value.reason)
    assert reasons == ["json", "label", "json"] and len(str(caught.value)) < 500
    assert source[2]["label"] == 1


def test_the_captions_of_json(tmp_path):
    found = [
        ({"captions": None, "caption": "x"}, "x"),
        ({"captions": [], "caption": "x"}, "x"),
        ({"captions": ["good", ""], "caption": "x"}, "good"),
        ({"captions": ["", " "], "caption": "fine"}, "fine"),
        ({"captions": ["a \ud83d", " ", "b"]}, ("a \ufffd", "b")),
        ({"captions": {"en": "a", "de": ["b", ""]}}, {"en": "a", "de": "b"}),
    ]
    members = []
    for number, (about, _) in enumerate(found):
        members += [(f"{number}.png", png(0)), (f"{number}.json", json.dumps(about).encode())]
    source = make_source(f"tar:{tar(tmp_path / 'a.tar', members)}")
    assert [source[i]["text"] for i in range(len(found))] == [text for _, text in found]


def test_incomplete_pairs_are_counted_not_dropped(tmp_path):
    members = [("0.png", png(0)), ("1.txt", b"alone"), ("2.png", png(2)), ("2.txt", b"\xff")]
    members += [("3.png", png(3)), ("3.json", b"{")]
    source = make_source(f"tar:{tar(tmp_path / 'a.tar', members)}")
    reasons = []
    for i in range(len(source)):
        with pytest.raises(SampleError) as caught:
            source[i]
        reasons.append(caught.value.reason)
    assert reasons == ["missing_text", "missing_image", "text_encoding", "json"]


@pytest.mark.parametrize(
    "members, message",
    [
        ([("0.v2.png", png(0))], "'v2.png' is unknown"),
        ([("0.png", png(0)), ("0.png", png(1))], "key '0' twice"),
        ([("0.png", png(0)), ("0.jpg", png(1))], "key '0' twice"),
        ([("0.txt", b"a"), ("0.txt", b"b")], "key '0' twice"),
        ([("../0.png", png(0))], "outside"),
        ([("0.png", (tarfile.SYMTYPE, "/etc/passwd"))], "type"),
    ],
)
def test_refused_members(tmp_path, members, message):
    tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message):
        make_source(f"tar:{tmp_path}/a.tar")


def test_declared_extensions_are_left_out(tmp_path):
    path = tar(tmp_path / "a.tar", [*pairs(2), ("00000.npy", b"x")])
    source = make_source({"spec": f"tar:{path}", "ignore": (".npy",)})
    assert len(source) == 2 and len(make_source(f"tar:{path}?ignore=npy")) == 2
    # An ignored kind is not read, even where it is known.
    with pytest.raises(SampleError, match="no caption"):
        make_source(f"tar:{path}?ignore=npy,txt")[0]


# The index


def test_an_index_is_made_once_and_the_shard_not_scanned_again(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar", pairs(5))
    first = make_source(f"tar:{path}")
    assert index_path(path).exists()
    assert stat.S_IMODE(index_path(path).stat().st_mode) == 0o644
    monkeypatch.setattr(tar_indexing, "make_index", None)
    again = make_source(f"tar:{path}")
    assert again.fingerprint() == first.fingerprint() and again[4] == first[4]


names = st.text("ab/.", min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(names, st.sampled_from(["png", "txt", "json", "npy"]), st.binary(max_size=1500)),
        max_size=12,
    ),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_an_index_holds_what_a_strict_scan_finds(tmp_path_factory, members, fmt):
    """Against `tarfile` on whole archives: the same records, places and checksums."""
    path = tmp_path_factory.mktemp("index") / "a.tar"
    tar(path, [(f"{stem}.{extension}", content) for stem, extension, content in members], fmt)
    expected = {}
    with tarfile.open(path) as archive:
        wrong = False
        for member in archive.getmembers():
            folder, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            parts = expected.setdefault(folder + slash + stem, {})
            wrong |= extension in parts or member.name.startswith("/") or ".." in member.name
            content = archive.extractfile(member).read()
            parts[extension] = (member.offset_data, member.size, zlib.crc32(content))
    if wrong:  # the cases of test_refused_members, and "a..b", which is no more than unusual
        return
    index = open_indexes([shard_file(path)])[0]
    assert {r.key: r.parts for r in map(index.record, range(len(index)))} == expected
    assert [record.key for record in index] == list(expected)
    assert index_path(path).read_bytes() == make_index(shard_file(path))


@pytest.mark.parametrize("change", ["longer", "shorter", "head", "tail"])
def test_a_shard_that_changed_is_named(tmp_path, change):
    path = tar(tmp_path / "a.tar", pairs(200))
    make_source(f"tar:{path}")
    content = bytearray(path.read_bytes())
    if change == "longer":
        content += bytes(512)
    elif change == "shorter":
        del content[-512:]
    else:
        content[1000 if change == "head" else -60_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} changed since it was indexed.*delete"):
        make_source(f"tar:{path}")
    index_path(path).unlink()
    if change == "longer":  # by zeros: a whole archive, which may be indexed again
        make_source(f"tar:{path}")


def test_what_changed_in_the_middle_is_seen_when_it_is_read(tmp_path):
    path = tar(tmp_path / "a.tar", pairs(200))
    source = make_source(f"tar:{path}")
    part = source.indexes[0].record(100).parts["png"]
    content = bytearray(path.read_bytes())
    content[part.offset + part.size // 2] ^= 4
    path.write_bytes(content)
    source = make_source(f"tar:{path}")
    with pytest.raises(SampleError, match="checksum") as caught:
        source[100]
    assert caught.value.reason == "damaged" and caught.value.key == "a.tar/00100"
    assert source[99]["image"] == png(99) and source[101]["image"] == png(101)


def test_a_damaged_index_is_never_believed(tmp_path):
    path = tar(tmp_path / "a.tar", pairs(2))
    index = open_indexes([shard_file(path)])[0]
    records = [index.record(i) for i in range(2)]
    content = index_path(path).read_bytes()
    noticed = 0
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        index_path(path).write_bytes(damaged)
        try:
            opened = TarIndex(sidecar_of(data_path(str(path))))
            for number in range(2):
                try:
                    assert opened.record(number) == records[number]
                except IndexDamagedError as error:
                    assert "Delete it" in str(error)
                    noticed += 1
        except IndexDamagedError as error:
            assert str(index_path(path)) in str(error)
            noticed += 1
    assert noticed >= len(content) // 3
    for length in range(0, len(content), 19):
        index_path(path).write_bytes(content[:length])
        with pytest.raises(IndexDamagedError):
            TarIndex(sidecar_of(data_path(str(path))))


def test_where_the_folder_cannot_be_written_to(tmp_path, cache, monkeypatch):
    (tmp_path / "ro").mkdir()
    path = tar(tmp_path / "ro" / "a.tar", pairs(2))
    plain = tar_indexing.write

    def write(where, content):
        if str(tmp_path / "ro") in where.url:
            raise PermissionError("read-only")
        plain(where, content)

    monkeypatch.setattr(tar_indexing, "write", write)
    first = make_source(f"tar:{path}")
    assert not index_path(path).exists() and len(list((cache / "tar_index").iterdir())) == 1
    monkeypatch.setattr(tar_indexing, "make_index", None)
    assert make_source(f"tar:{path}").fingerprint() == first.fingerprint()
    # The name of a cached index says which version of the shard it belongs to.
    os.utime(path, ns=(1, 1))
    with pytest.raises(TypeError):
        make_source(f"tar:{path}")
    monkeypatch.undo()


def test_processes_that_start_together(tmp_path):
    for number in range(12):
        tar(tmp_path / f"{number:02d}.tar", pairs(3, number))
    results, errors = [], []

    def open_all():
        try:
            results.append(make_source(f"tar:{tmp_path}/*.tar").fingerprint())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(set(results)) == 1 and len(results) == 6
    assert len(list(tmp_path.glob("*"))) == 24 and len(list(tmp_path.glob("*.tar.index"))) == 12


def test_a_shard_that_changes_under_the_scan(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar", pairs(2))
    plain = tar_indexing.make_index

    def slow(file, **how):
        content = plain(file, **how)
        tar(path, pairs(3))
        return content

    monkeypatch.setattr(tar_indexing, "make_index", slow)
    with pytest.raises(ValueError, match="changed while it was indexed"):
        make_source(f"tar:{path}")
    assert not index_path(path).exists()


def test_sources_go_to_worker_processes(tmp_path):
    source = make_source(f"tar:{tar(tmp_path / 'a.tar', pairs(3))}")
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


# Buckets


def test_shards_in_a_bucket(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("CLIPJAX_SHARD_CACHE", "0")
    files = {f"b/{i:02d}.tar": tar_bytes(pairs(4, 4 * i)) for i in range(3)}
    for name, content in files.items():
        (tmp_path / name.removeprefix("b/")).write_bytes(content)
    local = make_source(f"tar:{tmp_path}/*.tar")
    with bucket(monkeypatch, files) as (system, _):
        source = make_source("tar:memory://b/{00..02}.tar")
        assert source.fingerprint() == local.fingerprint()
        assert len(list((cache / "tar_index").iterdir())) == 3
        assert not any("index" in name for name in system.store)  # nothing is written unasked
        system.requests.clear()
        assert [source[i] for i in range(12)] == [local[i] for i in range(12)]
        assert len(system.requests) == 12  # one range an example
        system.requests.clear()
        make_source("tar:memory://b/{00..02}.tar")
        assert {r[0] for r in system.requests} == {"ls"}


def test_indexes_beside_shards_in_a_bucket(monkeypatch, cache):
    with bucket(monkeypatch, {"b/0.tar": tar_bytes(pairs(4))}) as (system, _):
        shard = find_files("memory://b/0.tar")[0]
        assert index_beside(shard) and not index_beside(shard)
        assert "/b/0.tar.index" in system.store
        with monkeypatch.context() as patch:
            patch.setattr(tar_indexing, "make_index", None)
            source = make_source("tar:memory://b/0.tar")
        assert source[3]["text"] == "picture 3"
        system.pipe_file("/b/0.tar", tar_bytes(pairs(5)))
        with pytest.raises(ValueError, match=r"memory://b/0.tar changed since it was indexed"):
            make_source("tar:memory://b/0.tar")


def test_a_bucket_that_fails(monkeypatch):
    monkeypatch.setenv("CLIPJAX_SHARD_CACHE", "0")
    with bucket(monkeypatch, {"b/0.tar": tar_bytes(pairs(4))}) as (system, delays):
        system.failures = [ConnectionResetError("reset")] * 3
        source = make_source("tar:memory://b/0.tar")
        assert len(delays) == 3
        system.failures, system.short = [TimeoutError("slow")], 1
        assert source[2]["image"] == png(2)
        assert len(delays) == 5
        # An outage stops the run: a replaced example would make the batch depend on the weather.
        system.failures = [TimeoutError("slow")] * 50
        with pytest.raises(OSError, match=r"memory://b/0.tar failed 6 times"):
            source[2]
        system.failures.clear()
        del system.store["/b/0.tar"]
        with pytest.raises(FileNotFoundError):
            source[2]


def test_what_is_damaged_on_its_way_is_read_again(monkeypatch):
    monkeypatch.setenv("CLIPJAX_SHARD_CACHE", "0")
    with bucket(monkeypatch, {"b/0.tar": tar_bytes(pairs(4))}) as (system, _):
        source = make_source("tar:memory://b/0.tar")
        plain, flips = system.cat_file, [True]

        def flipping(path, start=None, end=None, **kwargs):
            content = bytearray(plain(path, start, end, **kwargs))
            if flips and flips.pop():
                content[20] ^= 1  # of the picture, which comes first
            return bytes(content)

        monkeypatch.setattr(system, "cat_file", flipping)
        assert source[1]["image"] == png(1) and not flips
        flips.extend([True, True])
        with pytest.raises(SampleError, match="checksum"):
            source[1]


def test_files_far_apart_are_read_one_by_one(monkeypatch):
    monkeypatch.setenv("CLIPJAX_SHARD_CACHE", "0")
    members = [("0.png", png(0)), ("1.png", b"x" * 200_000), ("0.txt", b"zero"), ("1.txt", b"one")]
    with bucket(monkeypatch, {"b/0.tar": tar_bytes(members)}) as (system, _):
        source = make_source("tar:memory://b/0.tar")
        system.requests.clear()
        assert source[0]["text"] == "zero" and len(system.requests) == 2
        assert source[1]["text"] == "one" and len(system.requests) == 3
    assert tar_source.MAX_GAP < 200_000


def test_the_language_of_captions(tmp_path):
    members = [
        ("0.png", png(0)),
        ("0.json", b'{"captions": {"de": "Katze", "en": ["cat", "kitty"]}}'),
    ]
    members += [("1.png", png(1)), ("1.txt", b"a dog")]
    tar(tmp_path / "a.tar", members)
    whole, english = (make_source(f"tar:{tmp_path}/a.tar{o}") for o in ("", "?language=en"))
    assert whole[0]["text"].keys() == {"de", "en"} and english[0]["text"] == ("cat", "kitty")
    assert whole.fingerprint() != english.fingerprint()
    with pytest.raises(SampleError, match="no caption in 'en'") as caught:
        english[1]
    assert caught.value.reason == "filtered_language"


def test_packed_shards_bring_the_names_of_their_classes(tmp_path):
    for name, number in (("cat", 0), ("dog", 1)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.png").write_bytes(png(number))
    for _ in pack(make_source(f"folder:{tmp_path}/pets"), tmp_path / "packed", Packing()):
        pass
    source = make_source(f"tar:{tmp_path}/packed/*.tar")
    assert source.class_names == ("cat", "dog")
    assert [(source[i]["label"], source[i]["text"]) for i in range(2)] == [(0, "cat"), (1, "dog")]
    # Names that are given count; without the manifest there are none.
    assert make_source(f"tar:{tmp_path}/packed/*.tar?class_names=a,b").class_names == ("a", "b")
    (tmp_path / "packed" / "manifest.json").unlink()
    assert make_source(f"tar:{tmp_path}/packed/*.tar").class_names is None
