"""Subsets that a list of uids names, as DataComp publishes them."""

import json
import logging
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png, tar
from buckets import bucket
from data_command import run

from clipjax.data import make_source
from clipjax.data.tar import uids as tar_uids

pytestmark = pytest.mark.usefixtures("cache")
# The last ends in zeros, one begins with them.
UIDS = [f"{i:032x}" for i in (1, 255, 1 << 127, (1 << 128) - 1, 0xABC << 64, 0xAB << 120)]


def datacomp(path, uids=UIDS, start=0):
    members = []
    for i, uid in enumerate(uids):
        key, about = f"{start + i:012d}", {"caption": f"text {i}", "key": "x"}
        about |= {} if uid is None else {"uid": uid}
        members += [(f"{key}.jpg", png(i)), (f"{key}.json", json.dumps(about).encode())]
    return tar(path, members)


def published(path, uids):
    """As DataComp's own programs write a subset: sorted pairs of the halves of each uid."""
    pairs = [(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids]
    np.save(path, np.sort(np.array(pairs, np.dtype("u8,u8"))))
    return path


def of_header(shape):
    descr = "[('f0', '<u8'), ('f1', '<u8')]"
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def texts(source):
    return [source[i]["text"] for i in range(len(source))]


@pytest.mark.parametrize("kind", ["npy", "txt"])
@pytest.mark.parametrize("data", ["tar", "parquet", "csv"])
def test_a_subset_of(tmp_path, kind, data, caplog):
    caplog.set_level(logging.INFO)
    chosen = [UIDS[5], UIDS[0], UIDS[2], "f" * 31 + "0"]
    listed = tmp_path / f"subset.{kind}"
    if kind == "npy":
        published(listed, chosen)
    else:
        listed.write_text("\n".join([*chosen, chosen[0].upper(), ""]), "utf-8")
    captions = [f"text {i}" for i in range(6)]
    if data == "tar":
        datacomp(tmp_path / "0.tar", UIDS[:3])
        datacomp(tmp_path / "1.tar", UIDS[3:], start=3)
        captions = [f"text {i % 3}" for i in range(6)]
        spec = f"tar:{tmp_path}/{{0,1}}.tar"
    elif data == "parquet":
        table = {"image": [png(i) for i in range(6)], "text": captions, "uid": UIDS}
        pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=4)
        spec = f"parquet:{tmp_path}/a.parquet"
    else:
        (tmp_path / "0.jpg").write_bytes(png(0))
        rows = [f"0.jpg,{t},{u}" for t, u in zip(captions, UIDS, strict=True)]
        (tmp_path / "a.csv").write_text("\n".join(["image,text,uid", *rows]))
        spec = f"csv:{tmp_path}/a.csv"
    source = make_source(f"{spec}?filter={listed}")
    assert texts(source) == [captions[i] for i in (0, 2, 5)]
    assert source.counts == {"kept": 3, "filtered_uid": 3, "without_uid": 0, "not_found": 1}
    assert "keeps 3 of 6 examples" in caplog.text
    whole = make_source(spec)
    assert source.fingerprint() != whole.fingerprint()
    assert list(source.keys()) == [whole[i]["key"] for i in (0, 2, 5)]


def test_uids_of_shards_are_read_once(tmp_path, monkeypatch, cache):
    datacomp(tmp_path / "a.tar", [*UIDS[:2], None, "no uid", UIDS[5]])
    listed = published(tmp_path / "u.npy", [UIDS[1], UIDS[5]])
    spec = f"tar:{tmp_path}/a.tar?filter={listed}"
    source = make_source(spec)
    assert source.counts == {"kept": 2, "filtered_uid": 1, "without_uid": 2, "not_found": 0}
    reads, read = [], tar_uids.read_uids
    monkeypatch.setattr(tar_uids, "read_uids", lambda *given: reads.append(given) or read(*given))
    assert texts(make_source(spec)) == ["text 1", "text 4"] and not reads
    (kept,) = (cache / "tar_uids").iterdir()
    kept.write_bytes(kept.read_bytes().replace(UIDS[1][-2:].encode(), b"00"))
    assert texts(make_source(spec)) == ["text 1", "text 4"] and len(reads) == 1


def test_in_a_bucket_shards_are_read_in_large_pieces(tmp_path, monkeypatch):
    content = datacomp(tmp_path / "a.tar").read_bytes()
    listed = published(tmp_path / "u.npy", UIDS[3:5])
    with bucket(monkeypatch, {"b/a.tar": content}) as (system, _):
        make_source("tar:memory://b/a.tar")
        system.requests.clear()
        assert texts(make_source(f"tar:memory://b/a.tar?filter={listed}")) == ["text 3", "text 4"]
        assert sum(r[0] == "cat" for r in system.requests) == 1 + 2  # all uids, and two examples


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"0" * 31, r"a\.txt, line 1 is '0+', expected a uid of 32 hexadecimal"),
        ("a.txt", b"\n \n", r"a\.txt holds no uid"),
        ("a.npy", b"\x93NUMPY", r"a\.npy is no whole array of NumPy"),
        ("b.npy", np.arange(3), r"b\.npy holds int64\[3\], expected \[uids\] of the dtype 'u8,u8'"),
        ("c.npy", np.array([{"x": 1}], object), r"c\.npy holds object\[1\]"),
        ("e.npy", of_header("(2**40,)"), r"e\.npy is no whole array"),
        ("e.npy", of_header("(1099511627776,)"), r"0 bytes for 1099511627776 uids"),
        ("e.npy", of_header("(-1,)"), r"e\.npy is no whole array"),
        ("e.npy", of_header(f"({'9' * 30},)"), r"e\.npy is no whole array"),
        ("e.npy", of_header("(" * 4000), r"e\.npy is no whole array"),
        ("d.txt", None, r"there is no file .*d\.txt"),
    ],
)
def test_lists_that_are_none(tmp_path, name, content, message):
    datacomp(tmp_path / "a.tar")
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        np.save(tmp_path / name, content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        make_source(f"tar:{tmp_path}/a.tar?filter={tmp_path / name}")


def test_data_without_uids(tmp_path, capsys):
    listed = published(tmp_path / "u.npy", [UIDS[1]])
    datacomp(tmp_path / "a.tar", [None, None])
    with pytest.raises(ValueError, match="none of the 2 examples has one"):
        make_source(f"tar:{tmp_path}/a.tar?filter={listed}")
    with pytest.raises(ValueError, match="the data has none: they are looked for"):
        make_source(f"synthetic:4?filter={listed}")
    datacomp(tmp_path / "b.tar", UIDS[2:])
    with pytest.raises(
        ValueError, match="keeps none of the examples; take the list of uids of this"
    ):
        make_source(f"tar:{tmp_path}/b.tar?filter={listed}")
    assert run("check", f"tar:{tmp_path}/b.tar?filter={listed}") == 1
    assert f"filter={listed}" in capsys.readouterr().out
