"""Which of several captions is taken, and which are left out, each for its reason."""

import collections
import json

import numpy as np
import pytest
from archives import png

from clipjax.data import Loader, Preprocess, SampleError, make_source, make_transforms

MANY = ("a red cat", "a cat", "some animal")
NAMED = {"de": "Katze", "en": "cat", "fr": "chat"}


def rng(key=0):
    return np.random.Generator(np.random.Philox(key=key))


def build(name, **fields):
    return make_transforms([{"name": name, **fields}], image_size=4)[0]


def of(transform, text, key=0):
    image = np.zeros((4, 4, 3), np.uint8)
    return transform({"image": image, "text": text, "key": "k"}, rng(key))["text"]


def counts(transform, text, number=400):
    return collections.Counter(of(transform, text, key) for key in range(number))


def reason(transform, text):
    with pytest.raises(SampleError) as caught:
        of(transform, text)
    return caught.value.reason


def test_weights_as_a_list():
    found = counts(build("choose_caption", weights=(0.7, 0.3)), MANY)
    assert set(found) == {"a red cat", "a cat"} and 250 < found["a red cat"] < 310
    found = counts(build("choose_caption", weights=[0, 1, 1]), MANY)
    assert set(found) == {"a cat", "some animal"} and 160 < found["a cat"] < 240
    assert of(build("choose_caption", weights=(0.7, 0.3)), "alone") == "alone"


def test_weights_of_names_that_are_missing():
    choose = build("choose_caption", weights={"en": 3, "de": 1, "xx": 100, "fr": 0})
    found = counts(choose, NAMED)
    assert set(found) == {"cat", "Katze"} and 270 < found["cat"] < 330
    assert set(counts(choose, {"de": "Katze", "it": "gatto"}, 20)) == {"Katze"}
    assert reason(choose, {"it": "gatto"}) == reason(choose, {"fr": "chat"}) == "filtered_weights"
    assert reason(build("choose_caption", weights=(0, 1)), ("one",)) == "filtered_weights"


@pytest.mark.parametrize("temperature", [1e-300, 1e-4, 0.005])
def test_a_low_temperature_takes_the_largest(temperature):
    for weights, expected in (
        ({"en": 1000, "de": 1}, "cat"),
        ({"en": 0.5, "de": 0.9, "fr": 0.1}, "Katze"),
        ({"en": 1e308, "de": 1e300}, "cat"),
        ({"en": 5e-324, "de": 1e-300}, "Katze"),
    ):
        choose = build("choose_caption", weights=weights, temperature=temperature)
        assert set(counts(choose, NAMED, 50)) == {expected}


def test_temperature_scales_the_exponent():
    choose = build("choose_caption", weights={"en": 1000, "de": 10}, temperature=2.0)
    assert 0.86 < counts(choose, NAMED, 2000)["cat"] / 2000 < 0.96  # 10 : 1
    choose = build("choose_caption", weights={"en": 1e300, "de": 1e-300}, temperature=1e6)
    assert 0.45 < counts(choose, NAMED, 2000)["cat"] / 2000 < 0.55


@pytest.mark.parametrize("text", [(), [], {}, "", b""])
def test_no_caption(text):
    assert reason(build("choose_caption"), text) == "text_empty"
    assert reason(build("choose_caption", weights=(1.0,)), text) == "text_empty"


@pytest.mark.parametrize(
    "fields, message",
    [
        *(({"weights": value}, "weights = ") for value in (3, "ab", b"ab", (), {})),
        *(({"weights": value}, "weights = ") for value in (("a", "b"), (-1, 2), (0,))),
        *(({"weights": (1, value)}, "weights") for value in (None, float("nan"), float("inf"))),
        *(({"weights": value}, "weights") for value in ({1: 2}, {"en": "2"}, (10**400,), [[1]])),
        *(({"first": value}, r"first (is|=) ") for value in ("x", None, 1.5, float("nan"))),
        *(({"temperature": value}, "temperature") for value in (0, -1, "x", None, float("inf"))),
    ],
)
def test_choices_that_mean_nothing(fields, message):
    with pytest.raises(ValueError, match=message):
        build("choose_caption", **fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"patterns": (3,)}, r"patterns\[0\] = 3: expected a regular expression"),
        ({"patterns": (b"a",)}, "patterns.*a regular expression"),
        ({"patterns": ("(",)}, "unterminated"),
        ({"patterns": "abc"}, "expected a tuple of regular"),
        ({"patterns": None}, "expected a tuple of regular"),
        ({"min_words": None}, r"min_words = None"),
        ({"min_chars": -1}, "min_chars = -1"),
        ({"max_words": "5"}, "max_words = '5'"),
        ({"max_chars": 2.5}, r"max_chars = 2\.5"),
        ({"min_words": 5, "max_words": 3}, "max_words = 3: expected min_words = 5 or more"),
    ],
)
def test_filters_that_mean_nothing(fields, message):
    with pytest.raises(ValueError, match=message):
        build("filter_caption", **fields)


@pytest.mark.parametrize(
    "fields, dropped, kept, expected",
    [
        ({"min_words": 2}, "cat", "a cat", "filtered_short"),
        ({"min_chars": 5}, "  cat   ", "  tiger ", "filtered_short"),
        ({"max_words": 2}, "a red cat", "red  cat", "filtered_long"),
        ({"max_chars": 5}, "a red cat", "  cat   ", "filtered_long"),
        ({"patterns": (r"\.jpg$", "^http")}, "IMG_1.jpg", "a .jpg file", "filtered_pattern"),
        ({}, "   ", "x", "filtered_short"),
    ],
)
def test_what_a_filter_leaves_out(fields, dropped, kept, expected):
    caption_filter = build("filter_caption", **fields)
    for give in (lambda text: text, lambda text: (text,), lambda text: {"en": text}, str.encode):
        assert reason(caption_filter, give(dropped)) == expected
        left = of(caption_filter, give(kept))
        assert left == (kept if isinstance(left, str) else give(kept))


def test_a_filter_of_several_captions():
    caption_filter = build("filter_caption", min_words=2, max_words=3, patterns=("red",))
    assert of(caption_filter, ("cat", "a cat", "a red cat", "my own cat")) == (
        "a cat",
        "my own cat",
    )
    named = {"en": ("cat", "a cat"), "de": "Katze", "fr": ("un chat", "chat"), "it": ()}
    assert of(caption_filter, named) == {"en": ("a cat",), "fr": ("un chat",)}
    # The first one that is met names the reason.
    assert reason(caption_filter, ("a b c d", "cat")) == "filtered_long"
    assert reason(caption_filter, {"en": ("a red cat",), "fr": "x"}) == "filtered_pattern"
    assert reason(caption_filter, ()) == reason(caption_filter, {"en": ()}) == "filtered_short"


def test_a_filter_of_bytes():
    caption_filter = build("filter_caption", max_words=2)
    assert of(caption_filter, "zwei W\u00f6rter".encode()) == "zwei W\u00f6rter"
    assert of(caption_filter, (b"a b c", b"a b")) == (b"a b",)
    assert reason(caption_filter, b"\xff\xfe") == "text_encoding"


def batch_of(spec, transform):
    with Loader(
        make_source(spec),
        (transform,),
        lambda texts: np.array([[len(text)] for text in texts], np.int32),
        batch_size=2,
        seed=0,
        preprocess=Preprocess(4),
        max_bad_fraction=1.0,
    ) as loader:
        return loader.batch(0)["text"][:, 0].tolist(), loader.counts()


def test_in_a_run(tmp_path):
    """Weights that do not fit the captions end it with the remedy; what is left out is counted."""
    (tmp_path / "1.png").write_bytes(png(1))
    rows = [{"image": "1.png", "text": text} for text in ("cat", "a cat", "a red cat")]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A single caption, as of a source without languages in a mix, is taken as it is.
    lengths, found = batch_of(f"jsonl:{path}", build("choose_caption", weights={"en": 1}))
    assert set(lengths) <= {3, 5, 9} and not found
    lengths, found = batch_of(f"jsonl:{path}", build("filter_caption", max_words=1))
    assert lengths == [3, 3] and set(found) == {"filtered_long"}
    rows = [{"image": "1.png", "text": {"en": "cat", "de": "Katze"}}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert batch_of(f"jsonl:{path}", build("choose_caption", weights={"de": 1}))[0] == [5, 5]
    with pytest.raises(ValueError, match="weights is a tuple, the captions are a ") as no:
        batch_of(f"jsonl:{path}", build("choose_caption", weights=(1,)))
    assert not isinstance(no.value, SampleError)
    rows = [{"image": "1.png", "text": ["cat", "a cat"]}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"weights is a dict.*text_field=a,b.*change"):
        batch_of(f"jsonl:{path}", build("choose_caption", weights={"en": 1}))
