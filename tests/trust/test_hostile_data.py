"""JSON beside data and weights is read as strictly as a checkpoint's: one sentence."""

import json
import struct

import pytest

from clipjax.data.packed.folder import read_manifest
from clipjax.data.packed.records import MAGIC, unpack_record
from clipjax.data.storage.paths import DataPath
from clipjax.data.tar.index import FORMAT, IndexDamagedError, TarIndex, pack_index
from clipjax.strict_json import MAX_DEPTH, parse_json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"b": [{"a": 1, "a": 1}]}', "'a' stands twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "too large"),
        (f"[{'9' * 33}]", "33 digits"),
        ("[" * 100_000, "levels deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "levels deep"),
        (b"\xff", "utf-8"),
        ("{", "Expecting"),
        ("[1, 2]" + " " * 100, "larger than 50 bytes"),
    ],
)
def test_what_is_not_taken_for_json(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text, max_bytes=50 if words.startswith("larger") else 10**6)


def test_what_is():
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    for text in ('{"a": [1, -2.5e3, null, true, "\\u00e9"]}', deep, str(2**63), "[]"):
        assert parse_json(text) == json.loads(text)
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}  # as Windows saves it


SHARD = {"name": "000.tar", "count": 2, "bytes": 10, "sha256": "0", "skipped": {}}
PACKED = {"format": "clipjax.packing/1", "count": 2, "skipped": {}, "shards": [SHARD]}


@pytest.mark.parametrize(
    "bent",
    [
        {"shards": [{**SHARD, "name": ".."}]},
        {"shards": [{**SHARD, "name": "../x.tar"}]},
        {"shards": [{**SHARD, "name": "a\\x.tar"}]},
        {"shards": [{**SHARD, "name": 3}]},
        {"shards": [{**SHARD, "count": -1}]},
        {"shards": [{**SHARD, "count": True}]},
        {"shards": [{**SHARD, "bytes": "10"}]},
        {"shards": [{**SHARD, "skipped": {"text": "x"}}]},
        {"shards": [[]]},
        {"shards": {}},
        {"count": None},
        {"class_names": 3},
        {"class_names": "cat"},
        {"class_names": [1, 2]},
        {"format": ["x"]},
    ],
)
def test_manifests_of_packed_folders(bent, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(PACKED))
    assert read_manifest(DataPath(str(path)))["count"] == 2
    path.write_text(json.dumps({**PACKED, **bent}))
    with pytest.raises(ValueError, match=r"manifest\.json is (damaged|of the format)"):
        read_manifest(DataPath(str(path)))
    path.write_text(json.dumps(PACKED)[:-1] + ', "count": 3}')
    with pytest.raises(ValueError, match="'count' stands twice"):
        read_manifest(DataPath(str(path)))


def record(header):
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return MAGIC + struct.pack("<I", len(packed)) + packed


@pytest.mark.parametrize(
    "header",
    [
        {},
        [],
        3,
        {"key": "a"},
        {"key": "a", "blobs": []},
        {"key": "a", "blobs": {"image": "9"}},
        {"key": "a", "blobs": {"image": -1, "more": 1}},
        {"key": "a", "blobs": {"image": 10**30}},
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_headers_of_packed_records(header):
    assert unpack_record(record({"key": "a", "text": [], "blobs": {}}))["key"] == "a"
    with pytest.raises(ValueError):
        unpack_record(record(header))


INDEX = {"count": 1, "shard": {"bytes": 1, "sha256": "", "edges": ""}}


def line_of(value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.mark.parametrize(
    "line",
    [
        3,
        [],
        ["key"],
        ["key", []],
        [["key"], {}],
        ["key", {"jpg": 3}],
        ["key", {"jpg": [1, 2]}],
        ["key", {"jpg": [-1, 2, 3]}],
        ["key", {"jpg": [1, "2", 3]}],
        b"[" * 100_000,
    ],
)
def test_records_of_indexes(line):
    header = {"format": FORMAT, **INDEX}
    good = TarIndex(
        DataPath("x"), content=pack_index(header, [line_of(["key", {"jpg": [1, 2, 3]}])])
    )
    assert good.record(0).parts["jpg"] == (1, 2, 3)
    bent = TarIndex(DataPath("x"), content=pack_index(header, [line_of(line)]))
    for read in (lambda: bent.record(0), lambda: list(bent)):
        with pytest.raises(IndexDamagedError, match="damaged at record 0"):
            read()


@pytest.mark.parametrize(
    "bent", [{"count": "x"}, {"count": -1}, {"count": None}, {"shard": []}, {"format": 3}]
)
def test_headers_of_indexes(bent):
    header = {"format": FORMAT, **INDEX, **bent}
    with pytest.raises(IndexDamagedError, match="is damaged"):
        TarIndex(DataPath("x"), content=pack_index(header, [line_of(["key", {}])]))


def test_configs_of_other_packages(command, original, tmp_path, kit):
    """A directory of Hugging Face's, one field after the other made wrong."""
    out = tmp_path / "hf"
    assert command("convert", "--from", original, "--to", out, "--format=hf").code == 0
    assert command("convert", "--from", out, "--to", tmp_path / "back").code == 0
    config = json.loads((out / "config.json").read_text())
    vision = config["vision_config"]
    bent = {
        "list": [],
        "no vision": {**config, "vision_config": None},
        "text size": {**config, "vision_config": {**vision, "hidden_size": "wide"}},
        "huge size": {**config, "vision_config": {**vision, "image_size": 10**12}},
        "negative": {**config, "vision_config": {**vision, "num_hidden_layers": -3}},
        "code": {**config, "auto_map": {"AutoModel": "os--system"}, "model_type": "os:system"},
        "activation": {**config, "vision_config": {**vision, "hidden_act": "os:system"}},
        "text": "hello",
    }
    texts = {name: json.dumps(value) for name, value in bent.items()}
    texts |= {"twice": json.dumps(config)[:-1] + ', "model_type": "clip"}', "deep": "[" * 10**5}
    texts |= {"NaN": json.dumps(config).replace("1e-05", "NaN"), "empty": ""}
    for name, text in texts.items():
        (out / "config.json").write_text(text)
        done = command("convert", "--from", out, "--to", tmp_path / "x")
        assert done.code == 1, name
        assert len(done.err.strip().splitlines()) == 1, (name, done.err)
        assert not (tmp_path / "x").exists()


def test_a_file_larger_than_the_memory_is_one_sentence(command, tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    path.write_text("image,text\na.png,a\n")

    def no_memory(*arguments):
        raise MemoryError

    monkeypatch.setattr("clipjax.data.sources.table.read_given", no_memory)
    done = command("data", "stats", f"csv:{path}")
    assert done.code == 1
    assert done.err == ("clipjax data: not enough memory: a file is larger than what there is\n")
