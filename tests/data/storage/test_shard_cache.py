import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest
from archives import pairs, tar_bytes
from buckets import bucket
from counting import HANGS_S

from clipjax.data import make_source
from clipjax.data.packed.records import RecordFile, pack_record, write_records
from clipjax.data.storage import shard_cache
from clipjax.data.storage.files import stat
from clipjax.data.storage.paths import data_path
from clipjax.data.storage.shard_cache import HotShards, ShardCache, budget_bytes

SIZE = 10_000
FILES = {f"b/{i}": bytes([i]) * SIZE for i in range(4)}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when told; stamps of files follow it."""
    now = [time.time()]
    monkeypatch.setattr(shard_cache.time, "time", lambda: now[0])
    plain = os.utime
    monkeypatch.setattr(
        shard_cache.os, "utime", lambda path: plain(path, (now[0], now[0])), raising=True
    )
    return now


def shards_of(names):
    return [stat(data_path(f"memory://{name}")) for name in names]


def hot_shards(tmp_path, budget, names=tuple(FILES)):
    cache = ShardCache(tmp_path / "shards", budget)
    return HotShards(shards_of(names), [SHA256[name] for name in names], cache)


def cached(tmp_path):
    return sorted(p.read_bytes()[0] for p in (tmp_path / "shards").glob("*.shard"))


def test_what_is_read_often_is_fetched_once(tmp_path, monkeypatch):
    with bucket(monkeypatch, FILES) as (system, _):
        hot = hot_shards(tmp_path, 10 * SIZE)
        system.requests.clear()
        for _ in range(50):
            assert hot.read(1, 2000, 1000) == FILES["b/1"][2000:3000]
        # Ten ranges make one shard; then it is fetched, and the bucket left alone.
        assert system.bytes_read("b/1") == 2 * SIZE
        assert cached(tmp_path) == [1]
        again = hot_shards(tmp_path, 10 * SIZE)
        again.read(1, 0, 10)
        assert system.bytes_read("b/1") == 2 * SIZE


def test_nothing_is_fetched_in_vain(tmp_path, monkeypatch, clock):
    """All shards alike, room for two: the two that came first stay."""
    with bucket(monkeypatch, FILES) as (system, _):
        hot = hot_shards(tmp_path, 2 * SIZE)
        system.requests.clear()
        for turn in range(200):
            clock[0] += 1
            assert hot.read(turn % 4, 0, 1000) == FILES[f"b/{turn % 4}"][:1000]
        assert cached(tmp_path) == [0, 1]
        read = {i: system.bytes_read(f"b/{i}") for i in range(4)}
        assert read == {0: 2 * SIZE, 1: 2 * SIZE, 2: 5 * SIZE, 3: 5 * SIZE}


def test_what_is_no_longer_used_makes_room(tmp_path, monkeypatch, clock):
    with bucket(monkeypatch, FILES):
        hot = hot_shards(tmp_path, 2 * SIZE)
        for number in (0, 1, 2, 3):
            for _ in range(15):
                clock[0] += 10
                hot.read(number, 0, 1000)
        assert cached(tmp_path) == [2, 3]  # the least recently used went first
        sizes = [p.stat().st_size for p in (tmp_path / "shards").iterdir() if p.suffix == ".shard"]
        assert sum(sizes) <= 2 * SIZE


def test_an_eviction_under_a_reader(tmp_path, monkeypatch):
    with bucket(monkeypatch, FILES):
        hot = hot_shards(tmp_path, 2 * SIZE)
        for _ in range(12):
            hot.read(0, 0, 1000)
        (path,) = (tmp_path / "shards").glob("*.shard")
        monkeypatch.setattr(hot.cache, "find", lambda _: data_path(str(path)))
        path.unlink()
        assert hot.read(0, 500, 100) == FILES["b/0"][500:600]


def test_a_cached_copy_that_was_cut_is_read_anew(tmp_path, monkeypatch, caplog):
    with bucket(monkeypatch, FILES):
        hot = hot_shards(tmp_path, 10 * SIZE)
        for _ in range(12):
            hot.read(0, 0, 1000)
        (path,) = (tmp_path / "shards").glob("*.shard")
        path.write_bytes(path.read_bytes()[:600])
        assert hot_shards(tmp_path, 10 * SIZE).read(0, 5000, 1000) == FILES["b/0"][5000:6000]
        assert not path.exists() and "cached copy of memory://b/0 was damaged" in caplog.text
        # Cut between the look at its size and the reading.
        path.write_bytes(b"short")
        monkeypatch.setattr(hot.cache, "find", lambda _: data_path(str(path)))
        assert hot.read(0, 5000, 1000) == FILES["b/0"][5000:6000]
        assert not path.exists()


def test_a_damaged_shard_is_not_cached(tmp_path, monkeypatch, caplog):
    with bucket(monkeypatch, FILES) as (system, _):
        hot = hot_shards(tmp_path, 10 * SIZE)
        system.store["/b/0"].seek(7)
        system.store["/b/0"].write(b"x")
        for _ in range(12):
            hot.read(0, 0, 1000)
        assert cached(tmp_path) == [] and "SHA-256" in caplog.text
        assert [p.name for p in (tmp_path / "shards").iterdir()] == ["lock"]


def test_what_a_killed_process_left_behind_is_removed(tmp_path, monkeypatch):
    with bucket(monkeypatch, FILES):
        (tmp_path / "shards").mkdir()
        left_over = tmp_path / "shards" / ".x.shard.part"
        left_over.write_bytes(b"x" * SIZE)
        cache = ShardCache(tmp_path / "shards", 2 * SIZE)
        assert cache.fetch(shards_of(["b/0"])[0], SHA256["b/0"]) is not None
        assert not left_over.exists()


def test_threads_share_one_fetch(tmp_path, monkeypatch):
    with bucket(monkeypatch, FILES) as (system, _):
        hot = hot_shards(tmp_path, 10 * SIZE)
        wrong = []

        def read_all():
            for _ in range(40):
                if hot.read(2, 100, 1000) != FILES["b/2"][100:1100]:
                    wrong.append(1)

        threads = [threading.Thread(target=read_all) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and cached(tmp_path) == [2]
        assert sum(r[0] == "cat" and r[3] - r[2] == SIZE for r in system.requests) == 1


_PROCESS = """
import sys
from clipjax.data.storage.paths import data_path
from clipjax.data.storage.shard_cache import ShardCache
from clipjax.data.storage.files import read_all, stat
import hashlib, pathlib
cache = ShardCache(pathlib.Path(sys.argv[1]) / "shards", 25_000)
files = [stat(data_path(name)) for name in sys.argv[2:]]
for turn in range(60):
    file = files[turn % len(files)]
    whole = read_all(file.path)
    found = cache.fetch(file, hashlib.sha256(whole).hexdigest(), wait=turn % 2 == 0)
    try:
        assert found is None or read_all(found) == whole
    except FileNotFoundError:
        pass
    total = 0
    for p in cache.directory.iterdir():
        try:
            total += p.stat().st_size
        except FileNotFoundError:
            pass
    assert total <= 25_000, total
"""


def test_processes_share_one_cache(tmp_path):
    names = []
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes([number]) * SIZE)
        names.append(str(tmp_path / str(number)))
    command = [sys.executable, "-c", _PROCESS, str(tmp_path), *names]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        assert process.wait(HANGS_S) == 0, process.stderr.read()
        process.stderr.close()
    assert len(cached(tmp_path)) == 2


@pytest.mark.parametrize("text, size", [("0", 0), ("200GB", 200e9), ("1.5 TB", 1.5e12), ("", 10e9)])
def test_budget(monkeypatch, text, size):
    monkeypatch.setenv("CLIPJAX_SHARD_CACHE", text)
    assert budget_bytes() == size
    monkeypatch.setenv("CLIPJAX_SHARD_CACHE", "much")
    with pytest.raises(ValueError, match="200GB"):
        budget_bytes()


def test_tar_shards_become_local(tmp_path, monkeypatch, cache):
    with bucket(monkeypatch, {"b/0.tar": tar_bytes(pairs(50))}) as (system, _):
        source = make_source("tar:memory://b/*.tar")
        first = [source[i] for i in range(50)]
        for _ in range(300):
            assert source[3] == first[3]
        assert len(list((cache / "shards").glob("*.shard"))) == 1
        requests = len(system.requests)
        assert [source[i] for i in range(50)] == first
        assert len(system.requests) == requests


def test_a_cached_shard_that_rots_is_read_anew(monkeypatch, cache):
    with bucket(monkeypatch, {"b/0.tar": tar_bytes(pairs(50))}):
        source = make_source("tar:memory://b/*.tar")
        first = [source[i] for i in range(50)]
        for _ in range(300):
            source[3]
        (path,) = (cache / "shards").glob("*.shard")
        path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
        assert [source[i] for i in range(50)] == first
        assert not path.exists() or path.read_bytes() == tar_bytes(pairs(50))


def test_packed_records_in_a_bucket(tmp_path, monkeypatch, cache):
    path = tmp_path / "x.array_record"
    write_records(path, [pack_record(key="k", text=("t",), blobs={"image": b"1"})])
    files = {f"b/{p.name}": p.read_bytes() for p in (path, tmp_path / "x.array_record.json")}
    with bucket(monkeypatch, files) as (system, _):
        monkeypatch.setenv("CLIPJAX_SHARD_CACHE", "10")
        with pytest.raises(ValueError, match="CLIPJAX_SHARD_CACHE"):
            RecordFile("memory://b/x.array_record")
        monkeypatch.setenv("CLIPJAX_SHARD_CACHE", "1GB")
        source = make_source("arrayrecord:memory://b/*.array_record")
        assert source[0]["text"] == "t"
        (copy,) = (cache / "shards").glob("*.shard")
        copy.write_bytes(bytes(255 - byte for byte in copy.read_bytes()))
        assert make_source("arrayrecord:memory://b/*.array_record")[0]["text"] == "t"
        system.pipe_file("/b/x.array_record", files["b/x.array_record"][:-1] + b"x")
        with pytest.raises(ValueError, match="damaged"):
            RecordFile("memory://b/x.array_record")


def test_packed_records_that_do_not_fit_together_are_refused(tmp_path, monkeypatch, cache):
    files, sizes = {}, []
    for number in range(3):
        path = tmp_path / f"{number}.array_record"
        write_records(path, [pack_record(key="k", text=("t",), blobs={"image": b"1"})])
        files |= {
            f"b/{p.name}": p.read_bytes() for p in (path, path.with_name(f"{path.name}.json"))
        }
        sizes.append(path.stat().st_size)
    with bucket(monkeypatch, files) as (system, _):
        # Each fits alone: the third would push out the first, which stays open.
        monkeypatch.setenv("CLIPJAX_SHARD_CACHE", str(sum(sizes) - 1))
        with pytest.raises(ValueError, match=r"set CLIPJAX_SHARD_CACHE, now .* to 1GB or more"):
            make_source("arrayrecord:memory://b/*.array_record")
        assert not (cache / "shards").exists()
        monkeypatch.setenv("CLIPJAX_SHARD_CACHE", str(sum(sizes)))
        source = make_source("arrayrecord:memory://b/*.array_record")
        system.requests.clear()
        copy = pickle.loads(pickle.dumps(source))  # for worker processes
        assert [copy[i] for i in range(3)] == [source[i] for i in range(3)]
        assert system.requests == []
        # What another run has pushed out is fetched again.
        for path in (cache / "shards").glob("*.shard"):
            path.unlink()
        assert pickle.loads(pickle.dumps(source))[2] == source[2]
        assert system.bytes_read(".array_record") == sum(sizes)
