"""The real clients of S3 and GCS, against servers of the test's own over a network that fails."""

import numpy as np
import pytest
from archives import pairs, tar_bytes
from object_stores import Network, server

from clipjax.data import Loader, Preprocess, make_source
from clipjax.data.storage import files as storage
from clipjax.data.storage import retrying
from clipjax.data.storage.paths import data_path
from clipjax.data.storage.retrying import StorageError
from clipjax.data.tar.indexing import index_beside

pytestmark = pytest.mark.cloud
SHARDS = {f"{i}.tar": tar_bytes(pairs(40, 40 * i)) for i in range(3)}
COUNT = 120


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request):
    """A scheme, and the network before a server that holds the shards."""
    environment = pytest.MonkeyPatch()
    with server(request.param) as port, environment.context() as patch:
        network = Network(port)
        patch.setenv("AWS_ENDPOINT_URL", network.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("STORAGE_EMULATOR_HOST", network.url)
        system = storage.filesystem(request.param)
        system.clear_instance_cache()
        storage.filesystem(request.param).mkdir("bucket")
        for name, content in SHARDS.items():
            storage.write(data_path(f"{request.param}://bucket/d/{name}"), content)
        yield request.param, network
        system.clear_instance_cache()
        network.shutdown()
        network.server_close()


@pytest.fixture
def calm(store, tmp_path, monkeypatch):
    """The scheme and a network without faults; an empty cache; no waiting before a retry."""
    scheme, network = store
    network.faults.clear()
    network.seen.clear()
    network.rate, network.forbidden, network.bytes = 0.0, "", 0
    monkeypatch.setenv("CLIPJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    return scheme, network


@pytest.fixture
def local(tmp_path):
    for name, content in SHARDS.items():
        (tmp_path / name).write_bytes(content)
    return make_source(f"tar:{tmp_path}/{{0..2}}.tar")


def in_bucket(scheme):
    return make_source(f"tar:{scheme}://bucket/d/{{0..2}}.tar")


def test_a_bucket_holds_what_the_disk_holds(calm, local):
    source = in_bucket(calm[0])
    assert len(source) == len(local) == COUNT and source.fingerprint() == local.fingerprint()
    assert list(source.keys()) == list(local.keys())
    for index in np.random.default_rng(0).permutation(COUNT)[:60].tolist():
        assert source[index] == local[index]
    assert len(make_source(f"tar:{calm[0]}://bucket/d/*.tar")) == COUNT


def test_a_network_that_fails_changes_no_byte(calm, local, monkeypatch):
    scheme, network = calm
    monkeypatch.setenv("CLIPJAX_SHARD_CACHE", "0")  # every example is asked for
    source = in_bucket(scheme)
    network.seen.clear()
    # gcsfs waits for a second and more before it asks again: fewer faults, of one request each.
    network.rate = 0.3 if scheme == "s3" else 0.1
    for index in range(0, COUNT, 1 if scheme == "s3" else 3):
        assert source[index] == local[index]
    assert sum(network.seen[kind] for kind in Network.KINDS) >= 3, network.seen


def test_fewer_bytes_are_never_taken_for_all(calm):
    scheme, network = calm
    path = data_path(f"{scheme}://bucket/d/0.tar")
    network.faults.extend(["less"] * 3)
    assert storage.read(path, 512, 3000) == SHARDS["0.tar"][512:3512]
    # Negative control: the client itself takes them.
    network.faults.append("less")
    got = storage.filesystem(scheme).cat_file(path.url, start=512, end=3512)
    assert got == SHARDS["0.tar"][512:2012]


def test_the_attempts_end(calm):
    scheme, network = calm
    network.faults.extend(["less"] * 1000)
    with pytest.raises(StorageError, match=rf"{scheme}://bucket/d/0\.tar failed 6 times"):
        storage.read(data_path(f"{scheme}://bucket/d/0.tar"), 512, 3000)
    assert network.seen["less"] == retrying.ATTEMPTS


def test_what_is_not_there_is_said_at_once(calm):
    scheme, network = calm
    with pytest.raises(ValueError, match=f"there is no file {scheme}://bucket/d/3.tar"):
        make_source(f"tar:{scheme}://bucket/d/{{0..3}}.tar")
    network.forbidden = "1.tar"
    with pytest.raises(PermissionError if scheme == "s3" else OSError):
        storage.read(data_path(f"{scheme}://bucket/d/1.tar"), 0, 512)


def test_indexes_stand_beside_the_shards_for_all_hosts(calm, tmp_path, monkeypatch):
    scheme, network = calm
    shards = storage.find_files(f"{scheme}://bucket/d/{{0..2}}.tar")
    made = [index_beside(shard) for shard in shards]
    assert made in ([True] * 3, [False] * 3)
    assert [index_beside(shard) for shard in shards] == [False] * 3
    network.bytes = 0
    monkeypatch.setenv("CLIPJAX_CACHE", str(tmp_path / "another host"))
    assert len(in_bucket(scheme)) == COUNT
    # Sidecars and edges: a shard is 123 kB here, and its edges are the whole of it; of a real
    # one they are a ten-thousandth.
    assert 0 < network.bytes < 3 * (2 * (64 << 10) + 20_000)


def test_hosts_make_the_batch_of_one(calm, local):
    source = in_bucket(calm[0])

    def batch(source, **host):
        def tokens(texts):
            return np.array([[int(text.split()[1])] for text in texts])

        with Loader(
            source, (), tokens, batch_size=24, seed=1, preprocess=Preprocess(3), **host
        ) as loader:
            return loader.batch(7)  # of the second epoch

    whole = batch(local)
    for name in whole:
        parts = [batch(source, process_index=i, process_count=3)[name] for i in range(3)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[name])


def test_a_hot_shard_is_fetched_once(calm, local):
    scheme, network = calm
    source = in_bucket(scheme)
    for _ in range(4):  # the examples of a shard are two thirds of its bytes at the least
        for index in range(40):
            assert source[index] == local[index]
    fetched = network.bytes
    for index in range(40):
        assert source[index] == local[index]
    assert network.bytes == fetched
