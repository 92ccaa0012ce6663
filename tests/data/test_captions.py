import collections

import numpy as np
import pytest

from clipjax.data import Loader, SampleError, TooManyBadExamples, make_transforms
from clipjax.data.bad_examples import shard_of
from clipjax.data.transforms import ChooseCaption, FilterCaption, choose_text


def rng(key=0):
    return np.random.Generator(np.random.Philox(key=key))


def drawn(transform, text, count=4000):
    generator = rng()
    texts = (transform({"image": b"", "text": text, "key": "k"}, generator) for _ in range(count))
    return {name: n / count for name, n in collections.Counter(t["text"] for t in texts).items()}


def test_languages_are_drawn_alike():
    text = {"en": ("a", "b", "c"), "de": "d"}
    generator = rng()
    counts = collections.Counter(choose_text(text, generator) for _ in range(3000))
    assert counts["d"] == pytest.approx(1500, abs=100)
    assert counts["a"] == pytest.approx(500, abs=80)
    # The order in which a file names its languages changes nothing.
    turned = {"de": "d", "en": ("a", "b", "c")}
    assert [choose_text(text, rng(i)) for i in range(50)] == [
        choose_text(turned, rng(i)) for i in range(50)
    ]
    assert choose_text({}, rng()) == choose_text((), rng()) == ""


def test_captions_by_weight():
    shares = drawn(ChooseCaption(weights=(3, 1)), ("a", "b", "c"))
    assert shares.keys() == {"a", "b"} and shares["a"] == pytest.approx(0.75, abs=0.03)
    assert drawn(ChooseCaption(weights=(3, 1)), "a") == {"a": 1}
    assert drawn(ChooseCaption(weights=(3, 1)), ("a",)) == {"a": 1}
    shares = drawn(
        ChooseCaption(weights={"en": 2, "de": 1, "fr": 1}), {"en": ("a", "b"), "de": "d"}
    )
    assert shares["d"] == pytest.approx(1 / 3, abs=0.03)
    assert shares["a"] == pytest.approx(1 / 3, abs=0.03)
    for weights, text in (({"en": 1}, {"de": "d"}), ((0, 1), ("a",))):
        with pytest.raises(SampleError) as caught:
            drawn(ChooseCaption(weights=weights), text)
        assert caught.value.reason == "filtered_weights"
    for weights, text in (({"en": 1}, ("a", "b")), ((1, 1), {"en": "a"}), ({"en": 1}, "a")):
        with pytest.raises(ValueError, match="belongs to a map") as caught:
            drawn(ChooseCaption(weights=weights), text)
        assert not isinstance(caught.value, SampleError)
    for weights in ((), (-1, 2), (0, 0), {}, {"en": -1}):
        with pytest.raises(ValueError, match="weights"):
            ChooseCaption(weights=weights)


def test_the_first_caption():
    assert drawn(ChooseCaption(first=0.5), ("a", "b", "c"))["a"] == pytest.approx(0.5, abs=0.03)
    assert drawn(ChooseCaption(), {"de": "d"}) == {"d": 1}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a red cat", "a red cat"),
        ("cat", "filtered_short"),
        ("a b c d e f", "filtered_long"),
        ("see IMG_1234 here", "filtered_pattern"),
        (("cat", "a red cat"), ("a red cat",)),
        (("cat", "dog"), "filtered_short"),
        ({"en": "a red cat", "de": ("Katze", "eine Katze")},
         {"en": "a red cat", "de": ("eine Katze",)}),
        ({"en": "cat", "de": ("Katze",)}, "filtered_short"),
        ("", "filtered_short"),
        ({}, "filtered_short"),
    ],
)  # fmt: skip
def test_captions_are_filtered_by_reason(text, expected):
    transform = FilterCaption(min_words=2, max_words=5, patterns=(r"IMG_\d+", "^http"))
    example = {"image": b"", "text": text, "key": "k"}
    if isinstance(expected, str) and expected.startswith("filtered_"):
        with pytest.raises(SampleError) as caught:
            transform(example, rng())
        assert caught.value.reason == expected
    else:
        assert transform(example, rng())["text"] == expected


def test_wrong_filters():
    for options in ({"min_words": 3, "max_words": 2}, {"min_chars": -1}, {"patterns": ("(",)}):
        with pytest.raises(ValueError, match="filter_caption"):
            FilterCaption(**options)
    with pytest.raises(ValueError, match="expected a list"):
        FilterCaption(patterns="a")


class Captions:
    """Every third caption is short; some examples are damaged."""

    class_names = None

    def __init__(self, damaged=()):
        self.damaged = set(damaged)

    def __len__(self):
        return 300

    def __getitem__(self, index):
        key = f"{index // 100:05d}.tar/{index:03d}"
        if index in self.damaged:
            raise SampleError("damaged", "its checksum", key)
        text = "cat" if index % 3 == 0 else f"a cat of {index}"
        return {"image": np.zeros((2, 2, 3), np.uint8), "text": text, "key": key}

    def fingerprint(self):
        return "captions"


def batches(source, transforms, **options):
    def tokens_of(texts):
        assert all(len(text.split()) > 1 for text in texts)
        return np.zeros((len(texts), 1), np.int32)

    loader = Loader(
        source, transforms, tokens_of, batch_size=50, seed=0, image_size=2, num_workers=0, **options
    )
    for step in range(6):
        assert loader.batch(step)["image"].shape == (50, 2, 2, 3)
    return loader


def test_a_filter_is_counted_and_stops_no_run():
    transforms = make_transforms(({"name": "filter_caption", "min_words": 2},), image_size=2)
    loader = batches(Captions(), transforms, max_bad_fraction=0.0)
    counts = loader.counts()
    assert counts.keys() == {"filtered_short"} and counts["filtered_short"] >= 100
    assert loader.bad_examples() == ()
    # Negative control: damage among what is filtered stops it.
    with pytest.raises(TooManyBadExamples, match="damaged"):
        batches(Captions({1}), transforms, max_bad_fraction=0.0)


def test_the_worst_shards_are_named():
    with pytest.raises(TooManyBadExamples, match=r"Most of them are in 00001.tar \(\d+\)"):
        loader = batches(
            Captions({5, *range(100, 200, 3)}),
            make_transforms(({"name": "filter_caption", "min_words": 2},), image_size=2),
            max_bad_fraction=0.02, bad_window=1000,
        )  # fmt: skip
        for step in range(6, 60):
            loader.batch(step)


@pytest.mark.parametrize(
    "key, shard",
    [
        ("00001.tar/000123", "00001.tar"),
        ("a/00001.tar/d/e", "a/00001.tar"),
        ("x.parquet:12", "x.parquet"),
        ("t.jsonl:3", "t.jsonl"),
        ("tabby_cat/1.png", "tabby_cat"),
        ("cifar10:train:5", "cifar10"),
        ("synthetic-1", ""),
        ("", ""),
    ],
)
def test_a_key_names_its_shard(key, shard):
    assert shard_of(key) == shard
