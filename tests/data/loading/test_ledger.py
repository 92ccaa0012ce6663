"""Planted damage, from shard to batch: the good come once, the bad are counted and named."""

import collections

import numpy as np
import pytest
from archives import png, tar

from clipjax.data import Loader, Preprocess, SampleError, TooManyBadExamples, make_source
from clipjax.data.loading.bad_examples import BadCount
from clipjax.data.loading.rows import RowMaker
from clipjax.data.tar import index as tar_index

BATCH = 100
SHARD = 500
pytestmark = pytest.mark.usefixtures("cache", "no_edges")

# What is planted, by the reason under which it has to be counted.
PLANTED = {
    "damaged": lambda i: [(f"{i:06d}.png", png(i)), (f"{i:06d}.txt", b"flipped later")],
    "image_format": lambda i: [(f"{i:06d}.png", png(i)[:40]), (f"{i:06d}.txt", b"cut")],
    "text_empty": lambda i: [(f"{i:06d}.png", png(i)), (f"{i:06d}.txt", b" \n")],
    "text_encoding": lambda i: [(f"{i:06d}.png", png(i)), (f"{i:06d}.txt", b"caf\xe9")],
    "missing_text": lambda i: [(f"{i:06d}.png", png(i))],
    "missing_image": lambda i: [(f"{i:06d}.txt", b"alone")],
}


@pytest.fixture
def no_edges(monkeypatch):
    """The damage is to be met by the loader, not when the shard is opened."""
    monkeypatch.setattr(tar_index, "EDGE", 1)


def plant(folder, count, bad):
    """Writes shards with `count` examples; gives the reasons of the bad ones by number."""
    rng = np.random.Generator(np.random.Philox(key=bad))
    numbers = rng.choice(count, bad, replace=False).tolist()
    reasons = {n: list(PLANTED)[i % len(PLANTED)] for i, n in enumerate(numbers)}
    for start in range(0, count, SHARD):
        members = []
        for i in range(start, min(start + SHARD, count)):
            good = [(f"{i:06d}.png", png(i)), (f"{i:06d}.txt", f"number {i}".encode())]
            members += PLANTED[reasons[i]](i) if i in reasons else good
        tar(folder / f"{start // SHARD:05d}.tar", members)
    source = make_source(f"tar:{folder}/*.tar")
    for i in (i for i, reason in reasons.items() if reason == "damaged"):
        path = folder / f"{i // SHARD:05d}.tar"
        part = source.indexes[i // SHARD].record(i % SHARD).parts["png"]
        with path.open("r+b") as file:
            file.seek(part.offset + 20)
            byte = file.read(1)[0]
            file.seek(part.offset + 20)
            file.write(bytes([byte ^ 1]))
    return reasons


class Ledger:
    """A source that notes what it was asked for and what it refused."""

    def __init__(self, source):
        self._source, self.class_names = source, source.class_names
        self.refused = collections.Counter()

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        try:
            return self._source[index]
        except SampleError:
            self.refused[index] += 1
            raise

    def fingerprint(self):
        return self._source.fingerprint()


def numbers_in(batch):
    image = batch["image"].astype(int)
    return (image[:, 0, 0, 1] * 256 + image[:, 0, 0, 0]).tolist()


def tokens_of(texts):
    return np.zeros((len(texts), 1), np.int32)


def loader_of(source, **options):
    options = {"num_workers": 2, "max_bad_fraction": 1.0, "preprocess": Preprocess(3), **options}
    return Loader(source, (), tokens_of, batch_size=BATCH, seed=0, **options)


EPOCHS = 2


def check_ledger(folder, count, bad):
    reasons = plant(folder, count, bad)
    ledger = Ledger(make_source(f"tar:{folder}/*.tar"))
    total, expected = collections.Counter(), collections.Counter()
    replaced = np.zeros(EPOCHS, int)
    orders = []
    with loader_of(ledger) as loader:
        for epoch in range(EPOCHS):
            delivered = []
            for step in range(epoch * count // BATCH, (epoch + 1) * count // BATCH):
                delivered += numbers_in(loader.batch(step))
            own = loader.workers.maker.indices(epoch * count, count).tolist()
            assert sorted(own) == list(range(count))
            # Every good one once in its own place, a good one in the place of each bad one.
            for number, place in zip(delivered, own, strict=True):
                assert number == place if place not in reasons else number not in reasons
                replaced[epoch] += number != place
            expected.update(reasons[place] for place in own if place in reasons)
            orders.append(own)
            total.update(delivered)
        counts, named = loader.counts(), loader.bad_examples()
    assert replaced.tolist() == [bad] * EPOCHS
    assert orders[0] != orders[1]
    assert sum(total.values()) == EPOCHS * count and not total.keys() & reasons.keys()
    assert sum(n - EPOCHS for n in total.values()) == EPOCHS * bad
    # A bad example is met once in its own place, and again where it would have been a substitute.
    met_again = sum(counts.values()) - EPOCHS * bad
    assert 0 <= met_again <= max(3, 4 * EPOCHS * bad * bad // count)
    assert set(counts) == set(reasons.values())
    assert all(counts[reason] >= number for reason, number in expected.items())
    # What the source itself refused, to the number.
    by_source = {"damaged", "text_encoding", "missing_text", "missing_image"}
    refused = collections.Counter()
    for index, number in ledger.refused.items():
        refused[reasons[index]] += number
    assert refused == {reason: n for reason, n in counts.items() if reason in by_source}
    for example in named:
        number = int(example.key[-6:])
        assert reasons[number] == example.reason
        assert example.key == f"{number // SHARD:05d}.tar/{number:06d}"


@pytest.mark.parametrize(
    "bad", [100, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 200))]
)
def test_ledger(tmp_path, bad):
    check_ledger(tmp_path, 2000, bad)


def test_a_ledger_sees_what_is_given_twice(tmp_path, monkeypatch):
    """Negative control: an order in which one example takes the place of another."""
    indices = RowMaker.indices

    def wrong(self, *where):
        found = indices(self, *where)
        return np.where(found == 7, 8, found)

    monkeypatch.setattr(RowMaker, "indices", wrong)
    with pytest.raises(AssertionError):
        check_ledger(tmp_path, 200, 0)


def test_a_ledger_sees_what_is_not_counted(tmp_path, monkeypatch):
    """Negative control."""
    add = BadCount.add
    monkeypatch.setattr(BadCount, "add", lambda self, seen, bad: add(self, seen, bad[1:]))
    with pytest.raises(AssertionError):
        check_ledger(tmp_path, 200, 20)


@pytest.mark.nightly
@pytest.mark.parametrize("bad", [0, 1, 100, 5000])
def test_long_ledger(tmp_path, bad):
    check_ledger(tmp_path, 50_000, bad)


def test_too_many_stop_the_run_and_name_the_worst_shard(tmp_path):
    plant(tmp_path, 1000, 100)
    source = make_source(f"tar:{tmp_path}/*.tar")
    with (
        loader_of(source, max_bad_fraction=0.05, bad_window=500) as loader,
        pytest.raises(TooManyBadExamples, match=r"Most of them are in 0000[01].tar \(\d+\), 0000"),
    ):
        for step in range(10):
            loader.batch(step)
    # Negative control: the share that is allowed.
    with loader_of(source, max_bad_fraction=0.2, bad_window=500) as loader:
        for step in range(10):
            loader.batch(step)
