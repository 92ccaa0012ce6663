import collections
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import worker_sources
from counting import HANGS_S
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.config import default_config
from clipjax.data import Loader, SampleError, TooManyBadExamples, make_source, make_transforms
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.bad_examples import BadCount, BadExample, add_states, share_of
from clipjax.data.loading.rows import Finishing, Part, RowMaker
from clipjax.data.source import draw
from clipjax.data.transforms.captions import clean_caption
from clipjax.processes.signals import PreemptionGuard, StopRequestedError

SPECS = (
    {"name": "random_resized_crop", "scale": (0.5, 1.0)},
    {"name": "color_jitter"},
    {"name": "random_flip"},
    {"name": "drop_word"},
)


class Numbers:
    """Example i is a picture of the number i; some may be bad."""

    class_names = None

    def __init__(self, size, bad=(), error=None):
        self.size, self.bad, self.error, self.wait = size, set(bad), error, lambda: None

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.wait()
        if index in self.bad:
            raise self.error or SampleError("planted", "it is bad", f"number-{index}")
        image = np.zeros((2, 2, 3), np.uint8)
        image[0] = divmod(index, 256)[0], index % 256, 0
        return {"image": image, "text": str(index), "key": f"number-{index}"}

    def fingerprint(self):
        return f"numbers/{self.size}"


def tokens_of(texts):
    return np.array([[len(text), sum(map(ord, text))] for text in texts], np.int32)


def numbers_in(batch):
    image = batch["image"].astype(int)
    return (image[:, 0, 0, 0] * 256 + image[:, 0, 0, 1]).tolist()


def make(source, batch_size, transforms=(), image_size=2, **options):
    options = {"seed": 0, "num_workers": 0, "bad_window": 1000, **options}
    return Loader(
        source,
        transforms,
        tokens_of,
        batch_size=batch_size,
        preprocess=Preprocess(image_size),
        **options,
    )


def augmented(batch_size=48, seed=0, **options):
    source = make_source("synthetic:100")
    return make(source, batch_size, make_transforms(SPECS, image_size=16), 16, seed=seed, **options)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


@settings(deadline=None, max_examples=15)
@given(n=st.integers(336, 900), step=st.integers(0, 10**12), seed=st.integers(0, 2**40))
def test_all_processes_together_make_the_batch_of_one(n, step, seed):
    source = Numbers(n)
    whole = make(source, 336, seed=seed).batch(step)
    for count in (2, 3, 4, 7, 8, 16):
        parts = [
            make(source, 336, seed=seed, process_index=i, process_count=count).batch(step)
            for i in range(count)
        ]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
        assert_equal(joined, whole)


class Captioned(Numbers):
    """Example i has caption number i of a list, over and over."""

    def __init__(self, size, texts, captions=None):
        super().__init__(size)
        self.texts, self.captions = texts, captions

    def __getitem__(self, index):
        return super().__getitem__(index) | {"text": self.texts[index % len(self.texts)]}


WORDS = [f"{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


@pytest.mark.parametrize(
    "texts, captions, told",
    [
        (
            ["a cat", "a dog"],
            None,
            "32 of 32 captions of the first batch stand in it more than once",
        ),
        (WORDS, None, r"of 32 captions of the first batch stand in it more than once"),
        ([*WORDS, *map(str.upper, WORDS)], None, None),
        (
            [f"{i:03d}" for i in range(64)],
            None,
            "32 of 32 captions of the first batch have no words",
        ),
        (
            [f"n{i:08d}" for i in range(64)],
            None,
            "32 of 32 captions of the first batch have no word",
        ),
        ([f"\u732b{i}" for i in range(64)], None, None),
        ([(f"{i}", f"cat {i}") for i in range(64)], None, None),
        (
            [f"a {i}\nb {i * i}" for i in range(64)],
            None,
            "32 of 32 texts .* hold several lines and st",
        ),
        ([f"a {i}\nb {i * i}" for i in range(64)], "whole", None),
    ],
)
def test_what_a_first_batch_shows_is_told_once(texts, captions, told, caplog):
    caplog.set_level("INFO")
    source = Captioned(52, texts, captions)

    def letters_of(texts):
        return np.array([[*map(ord, text.ljust(16))] for text in texts], np.int32)

    with Loader(
        source, (), letters_of, batch_size=32, seed=0, preprocess=Preprocess(2), num_workers=0
    ) as loader:
        loader.batch(7)
        loader.batch(8)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (told is not None), messages
    assert told is None or re.search(told, messages[0])


def test_what_processes_make_of_a_first_batch_is_told_by_the_lead(caplog):
    """Counted where the rows are made, which may be another process."""
    source = worker_sources.Numbers(40)
    for host in range(2):
        with make(
            source, 40, process_index=host, process_count=2, num_workers=2, workers="processes"
        ) as it:
            it.batch(0)
        found = [m for m in caplog.messages if "have no words" in m]
        assert [m[:8] for m in found] == ["20 of 20"]


@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_orders(monkeypatch, number):
    """Whatever the numbers of examples, hosts and rows, the epoch, step and seed: an epoch holds
    every example once, and host i of a batch takes its i-th part."""

    def places_alone(self, stage, start, images, at_work=None):
        tokens = self.indices(start, len(images)).astype(np.int32)[:, None]
        return Part(tokens, [], collections.Counter())

    monkeypatch.setattr(RowMaker, "make", places_alone)
    rng, preprocess = np.random.default_rng(0), Preprocess(1)
    for _ in range(number):
        hosts, rows = int(rng.choice([1, 2, 3, 4, 7, 8, 16])), int(rng.integers(1, 6))
        host, batch_size = int(rng.integers(hosts)), hosts * rows
        n, epoch = batch_size + int(rng.integers(50)), int(10 ** rng.uniform(0, 9))
        first, seed = epoch * n, int(rng.integers(2**40))
        step = first // batch_size + int(rng.integers(n // batch_size + 1))
        source = Numbers(n)
        options = {"seed": seed, "preprocess": preprocess, "num_workers": 0}
        loader = Loader(
            source,
            (),
            tokens_of,
            batch_size=batch_size,
            process_index=host,
            process_count=hosts,
            **options,
        )
        part = loader.batch(step)["text"][:, 0].tolist()
        start = step * batch_size + host * rows
        # The epoch in which the part begins, and what of it the part is.
        begin = start // n * n
        order = draw(source, np.arange(begin, begin + n), seed).tolist()
        assert sorted(order) == list(range(n))
        inside = order[start - begin :][:rows]
        assert part[: len(inside)] == inside and len(part) == rows


def test_processes_share_augmentation_too():
    whole = augmented().batch(5)
    parts = [augmented(process_index=i, process_count=3).batch(5) for i in range(3)]
    assert_equal({k: np.concatenate([p[k] for p in parts]) for k in whole}, whole)


@pytest.mark.parametrize("n, batch_size", [(96, 32), (100, 32), (37, 36)])
def test_ledger_of_two_epochs(n, batch_size):
    """Every example exactly once an epoch, across the borders of steps and epochs."""
    loader = make(Numbers(n), batch_size)
    steps = -(-2 * n // batch_size)
    seen = [number for step in range(steps) for number in numbers_in(loader.batch(step))]
    assert sorted(seen[:n]) == sorted(seen[n : 2 * n]) == list(range(n))
    assert seen[:n] != seen[n : 2 * n]


def test_workers_and_prefetch_change_nothing():
    plain = [augmented().batch(step) for step in range(4)]
    for num_workers, prefetch in ((0, 0), (1, 3), (3, 1), (4, 0)):
        with augmented(num_workers=num_workers, prefetch=prefetch) as loader:
            for (_, batch), expected in zip(loader.iterate(), plain, strict=False):
                assert_equal(batch, expected)
            # Seeking gives what iterating gave, in any order.
            assert_equal(loader.batch(2), plain[2])
            assert_equal(next(loader.iterate(3))[1], plain[3])


def test_seed_and_step_matter():
    """Negative control of the invariances above."""
    batch = augmented().batch(0)
    for other in (augmented(seed=1).batch(0), augmented().batch(1)):
        assert (batch["image"] != other["image"]).any()
    first, again = (augmented(batch_size=100).batch(step) for step in (0, 1))
    assert first["image"].mean() != again["image"].mean()


def test_hash_seed_and_process_change_nothing():
    code = (
        "import hashlib, sys; "
        "sys.path[:0] = ['tests/data', 'tests/data/loading', 'tests/helpers']; "
        "import test_loader as t; b = t.augmented().batch(3); "
        "print(hashlib.sha256(b['image'].tobytes() + b['text'].tobytes()).hexdigest())"
    )
    digests = set()
    for seed in ("0", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        env["PYTHONPATH"] = os.pathsep.join([os.getcwd(), env.get("PYTHONPATH", "")])
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        digests.add(out.stdout)
    assert len(digests) == 1


def tokens_of_three(texts):
    return np.array([[len(text), 0, 1] for text in texts], np.int32)


def staged(**options):
    """12 pixels and three tokens up to step 2, then 8 pixels, then 16 from step 3 on."""
    stages = [
        (
            until,
            Finishing(
                make_transforms(SPECS, image_size=size), tokenizer, Preprocess(size, "shortest")
            ),
        )
        for until, size, tokenizer in ((2, 12, tokens_of_three), (3, 8, tokens_of))
    ]
    return augmented(stages=stages, **options)


def test_a_stage_has_its_own_sizes_up_to_its_step():
    loader = staged()
    shapes = [(b["image"].shape[1:], b["text"].shape[1]) for b in map(loader.batch, range(5))]
    own = ((16, 16, 3), 2)
    assert shapes == [((12, 12, 3), 3)] * 2 + [((8, 8, 3), 2), own, own]


def test_prefetching_across_the_ends_of_stages_changes_nothing():
    plain = [staged().batch(step) for step in range(5)]
    with staged(num_workers=3, prefetch=3) as loader:
        for start in (0, 1, 2):
            for step, batch in loader.iterate(start):
                assert_equal(batch, plain[step])
                if step == 4:
                    break


def test_stages_change_neither_the_examples_nor_the_draws():
    whole = augmented(stages=())
    for step in (0, 2, 3):
        for name in ("image", "text"):
            small, own = staged().batch(step)[name], whole.batch(step)[name]
            if step == 3:
                np.testing.assert_array_equal(small, own)
            elif name == "text":
                np.testing.assert_array_equal(small[:, 0], own[:, 0])
            else:  # the same crop and colours of the same picture, in fewer pixels
                assert np.abs(small.mean(axis=(1, 2)) - own.mean(axis=(1, 2))).max() < 8
                other = augmented(seed=1).batch(step)[name]
                assert np.abs(small.mean(axis=(1, 2)) - other.mean(axis=(1, 2))).max() > 30


def test_shapes_and_types():
    batch = augmented().batch(0)
    assert batch["image"].shape == (48, 16, 16, 3) and batch["image"].dtype == np.uint8
    assert batch["text"].shape == (48, 2) and batch["text"].dtype == np.int32


@pytest.mark.parametrize("bad", [(), (3,), (0, 1, 50, 99)])
def test_a_bad_example_is_replaced_in_place_and_counted(bad):
    good = make(Numbers(100), 25, max_bad_fraction=1.0)
    loader = make(Numbers(100, bad), 25, max_bad_fraction=1.0)
    for step in range(4):
        for found, expected in zip(
            numbers_in(loader.batch(step)), numbers_in(good.batch(step)), strict=True
        ):
            assert (found == expected) == (expected not in bad)
            assert found not in bad
    assert loader.counts().get("planted", 0) >= len(bad)
    assert {b.key for b in loader.bad_examples()} == {f"number-{i}" for i in bad}


def test_substitutes_do_not_depend_on_processes():
    bad = range(0, 100, 9)
    whole = make(Numbers(100, bad), 96, max_bad_fraction=1.0)
    parts = [
        make(Numbers(100, bad), 96, max_bad_fraction=1.0, process_index=i, process_count=4)
        for i in range(4)
    ]
    joined = [number for part in parts for number in numbers_in(part.batch(0))]
    assert joined == numbers_in(whole.batch(0))
    counts = collections.Counter()
    for part in parts:
        counts.update(part.counts())
    assert counts == whole.counts()


def test_prefetched_batches_are_not_counted_before_they_are_given_out():
    with make(Numbers(10, [4]), 10, num_workers=2, prefetch=3, max_bad_fraction=1.0) as loader:
        batches = loader.iterate()
        next(batches)
        assert loader.counts() == {"planted": 1}


def test_too_many_bad_examples_stop_the_run():
    loader = make(Numbers(1000, range(20)), 100, max_bad_fraction=0.01)
    with pytest.raises(
        TooManyBadExamples, match=r"allowed are 10 of 1000.*planted.*data pack.*number-"
    ):
        for step in range(20):
            loader.batch(step)
    # Negative control: just as many as allowed.
    loader = make(Numbers(1000, range(9)), 100, max_bad_fraction=0.01)
    for step in range(20):
        loader.batch(step)


def test_nothing_but_bad_examples():
    with pytest.raises(TooManyBadExamples, match="Is this the right data"):
        make(Numbers(10, range(10)), 4).batch(0)


def left_out(index):
    return SampleError("filtered_planted", "it is left out", f"number-{index}")


def test_what_is_left_out_on_purpose_stops_no_run():
    """19 of 20 are left out, and none may be unusable."""
    source = Numbers(2000, set(range(2000)) - set(range(0, 2000, 20)), error=left_out(0))
    loader = make(source, 50, max_bad_fraction=0.0)
    numbers = [number for step in range(4) for number in numbers_in(loader.batch(step))]
    assert all(number % 20 == 0 for number in numbers)
    assert loader.counts()["filtered_planted"] > 2000
    # Negative control: as damage, the first one stops it.
    with pytest.raises(TooManyBadExamples):
        make(Numbers(200, [7]), 200, max_bad_fraction=0.0).batch(0)


def test_a_filter_that_takes_all_is_named():
    source = Numbers(10, range(10), error=left_out(3))
    with pytest.raises(TooManyBadExamples, match=r"filter.*belongs into the data"):
        make(source, 4).batch(0)


def test_one_in_a_thousand_may_be_unusable_by_default():
    options = inspect.signature(Loader).parameters
    assert options["max_bad_fraction"].default == default_config().data.max_bad_fraction == 1e-3
    count = BadCount(1e-3, options["bad_window"].default)

    def bad(number, shard="a.tar"):
        return [BadExample(0, f"{shard}/{i}", "planted", "it is bad") for i in range(number)]

    count.add(50_000, bad(100))
    with pytest.raises(TooManyBadExamples, match=r"101 of the last 50001 .* are 100 of 100000"):
        count.add(1, bad(1))
    # What left the window counts no more, nor do the shards where it was.
    count.add(99_000, bad(0))
    with pytest.raises(TooManyBadExamples, match=r"Most of them are in b\.tar \(101\)\. "):
        count.add(1000, bad(101, "b.tar"))


def test_a_restarted_job_goes_on_counting():
    def run(steps, *, restart):
        loader = make(Numbers(1000, range(0, 1000, 100)), 100, max_bad_fraction=0.015)
        for step in range(steps):
            if restart:
                kept = json.loads(json.dumps(add_states([loader.bad_state()])))
                loader = make(Numbers(1000, range(0, 1000, 100)), 100, max_bad_fraction=0.015)
                loader.restore_bad(kept)
            loader.batch(step)
        return loader

    whole, parts = run(12, restart=False), run(12, restart=True)
    assert parts.counts() == whole.counts() == {"planted": sum(whole.counts().values())}
    assert parts.bad_state()["by_reason"] == whole.bad_state()["by_reason"]
    # What comes after a restart adds to what came before it.
    source = Numbers(1000, range(0, 1000, 20))
    loader = make(source, 100, max_bad_fraction=0.015)
    loader.restore_bad({"by_reason": {"planted": 15}, "window": {"seen": 1000, "bad": 15}})
    with pytest.raises(TooManyBadExamples, match=r"In all: (1[6-9]|2\d) planted"):
        loader.batch(0)
    # Negative control: by itself, that is not too much.
    make(source, 100, max_bad_fraction=0.015).batch(0)


def test_counts_of_all_processes_are_those_of_one():
    source = Numbers(1000, range(0, 1000, 100))
    whole = make(source, 100, max_bad_fraction=1.0)
    parts = [
        make(source, 100, max_bad_fraction=1.0, process_index=i, process_count=4) for i in range(4)
    ]
    for step in range(10):
        for loader in (whole, *parts):
            loader.batch(step)
    together = add_states([part.bad_state() for part in parts])
    assert together == whole.bad_state()
    # Shared out among another number of processes and added up again, it is the same.
    shares = [share_of(together, i, 3) for i in range(3)]
    assert add_states(shares) == together


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fault_in_the_code_surfaces(num_workers):
    source = Numbers(10, [5], error=ZeroDivisionError("a bug"))
    loader = make(source, 10, num_workers=num_workers)
    with loader, pytest.raises(ZeroDivisionError, match="a bug"):
        next(loader.iterate())


def test_a_hanging_source_is_an_error():
    source, go_on = Numbers(4), threading.Event()
    source.wait = go_on.wait
    loader = make(source, 4, num_workers=1, timeout_s=0.1)
    with loader:
        with pytest.raises(TimeoutError, match="step 0"):
            loader.batch(0)
        go_on.set()


def test_close_leaves_no_thread():
    before = set(threading.enumerate())
    loader = make(Numbers(100), 10, num_workers=3, prefetch=4)
    batches = loader.iterate()
    next(batches)
    workers = set(threading.enumerate()) - before
    assert 0 < len(workers) <= 3
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(ValueError, match="closed"):
        loader.batch(0)
    batches.close()


def test_fingerprint_is_the_data_s():
    assert make(Numbers(10), 5).fingerprint() == make(Numbers(10), 2, seed=3).fingerprint()
    assert make(Numbers(10), 5).fingerprint() != make(Numbers(11), 5).fingerprint()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 10, "process_count": 3}, "multiple"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"process_index": 2, "process_count": 2}, r"process_index = 2.*\[0, 1\]"),
        ({"num_workers": -1}, "num_workers"),
        ({"max_bad_fraction": 2.0}, "max_bad_fraction"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed = 1.5: expected a whole number"),
        ({"batch_size": "8"}, "batch_size = '8': expected a whole number"),
        ({"batch_size": 8.0}, "batch_size = 8.0: expected a whole number"),
        ({"process_count": 0}, "process_count = 0"),
        ({"bad_window": 0}, "bad_window = 0"),
        ({"timeout_s": -1.0}, "timeout_s = -1"),
        ({"stages": [(3, Finishing((), tokens_of, Preprocess(2)))] * 2}, r"\[3, 3\].*ascending"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(Numbers(10), options.pop("batch_size", 10), **options)


def test_bad_data():
    with pytest.raises(ValueError, match="empty"):
        make(Numbers(0), 4)
    with pytest.raises(ValueError, match="holds 7 examples"):
        make(Numbers(7), 8)
    for step in (-1, 1.5, "1"):
        with pytest.raises(ValueError, match=f"step = {step!r}"):
            make(Numbers(4), 4).batch(step)


def test_captions_are_cleaned():
    assert clean_caption("cafe\u0301\0") == "caf\u00e9"
    assert clean_caption(b"caf\xc3\xa9") == "caf\u00e9"
    for text, reason in ((" \n", "text_empty"), (b"\xff", "text_encoding"), (3, "text_type")):
        with pytest.raises(SampleError) as caught:
            clean_caption(text)
        assert caught.value.reason == reason


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_that_waits_for_data_can_be_stopped(num_workers):
    """Data may be minutes late; a scheduler that stops a run waits for 30 seconds."""
    asked = threading.Event()

    class Late(Numbers):
        def __getitem__(self, index):
            if num_workers:
                assert asked.wait(HANGS_S)  # past the end of the wait
            elif not asked.is_set():
                asked.set()
                signal.raise_signal(signal.SIGTERM)
            return super().__getitem__(index)

    with PreemptionGuard(), make(Late(8), 4, num_workers=num_workers) as loader:
        if num_workers:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(StopRequestedError):
            loader.batch(0)
        asked.set()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_other_texts_stand_beside_the_model_s(num_workers):
    """By another tokenizer, of the caption that is named, or of that which the model reads."""

    class Named(Numbers):
        def __getitem__(self, index):
            found = super().__getitem__(index)
            text = {"a": f"{index}", "b": () if index == 3 else (f"{index} b", "no")}
            return {**found, "text": text}

    def lengths(texts):
        return np.array([[len(text)] for text in texts], np.int32)

    def chosen(example, rng):
        return {**example, "text": example["text"]["a"]}

    others = {"of_b": (tokens_of, "b"), "length": (lengths, "")}
    with make(
        Named(40), 16, [chosen], other_texts=others, num_workers=num_workers, max_bad_fraction=1.0
    ) as loader:
        batches = [loader.batch(step) for step in range(4)]
        counts = loader.counts()
    assert counts == {"no_such_caption": 2}  # in 64 examples, of which each 40 hold number 3
    for batch in batches:
        numbers = numbers_in(batch)
        assert 3 not in numbers
        np.testing.assert_array_equal(batch["text"], tokens_of([str(n) for n in numbers]))
        np.testing.assert_array_equal(batch["of_b"], tokens_of([f"{n} b" for n in numbers]))
        np.testing.assert_array_equal(batch["length"], lengths([str(n) for n in numbers]))
        assert sorted(batch) == ["image", "length", "of_b", "text"]
