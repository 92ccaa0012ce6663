"""Parts of a caption: some of its words, a chunk of its sentences, a name without its prompt."""

import collections
import importlib.util
import sys

import numpy as np
import pytest

from clipjax.data import Loader, Preprocess, make_source, make_transforms
from clipjax.data.transforms.word_classes import load_lexicon

LONG = "The small dog, a white puppy, runs quickly over green grass near Paris."
LEXICON = """;;; a comment
The DT
the DT
a DT
small JJ
dog NN
white JJ
puppy NN
runs VBZ
over IN
green JJ
grass NN
near IN
Paris NNP
"""


def rng(key=0):
    return np.random.Generator(np.random.Philox(key=key))


def build(name, **fields):
    return make_transforms([{"name": name, **fields}], image_size=4)[0]


def of(transform, text, key=0):
    return transform({"image": np.zeros((4, 4, 3), np.uint8), "text": text}, rng(key))["text"]


@pytest.fixture
def lexicon(tmp_path, monkeypatch):
    """A package textblob that has a few words, whatever is installed."""
    folder = tmp_path / "textblob" / "en"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('it is read, not imported')")
    (folder / "en-lexicon.txt").write_text(LEXICON, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "textblob", raising=False)
    load_lexicon.cache_clear()
    yield
    load_lexicon.cache_clear()


def test_truncation_keeps_the_first_words():
    mask = build("mask_words", kind="truncation", max_words=4)
    assert of(mask, LONG) == "The small dog,"
    assert of(mask, "a red  cat!") == "a red  cat!"  # four: as it is


@pytest.mark.parametrize("kind", ["random", "block"])
def test_masks_at_random_keep_the_order_and_reach_all(kind):
    words = [f"w{number}" for number in range(8)]
    mask = build("mask_words", kind=kind, max_words=3)
    found = collections.Counter()
    for key in range(600):
        places = [words.index(word) for word in of(mask, " ".join(words), key).split()]
        assert len(places) == 3 and places == sorted(set(places))
        assert kind == "random" or places[2] - places[0] == 2
        found[tuple(places)] += 1
    # Each subset, or start, as often as another: 56 of 600 / 56, 6 of 100.
    assert len(found) == {"random": 56, "block": 6}[kind]
    assert max(found.values()) < {"random": 30, "block": 140}[kind]


def test_nouns_come_first_then_adjectives_then_verbs(lexicon):
    def kept(number):
        return of(build("mask_words", kind="syntax", max_words=number), LONG)

    assert kept(2) == "dog puppy"
    assert kept(4) == "dog puppy grass Paris"
    assert kept(6) == "small dog white puppy grass Paris"
    assert kept(8) == "small dog white puppy runs green grass Paris"
    # Of the rest the first ones: the article, and the mark that stood at its word.
    assert kept(10) == "The small dog, white puppy runs green grass Paris"
    # What no lexicon has is a noun, but for adverbs, verbs and numbers by their looks.
    assert of(build("mask_words", kind="syntax", max_words=2), "3 gleefully zorbing Zorbs") == (
        "zorbing Zorbs"
    )


def test_the_lexicon_that_textblob_ships():
    if importlib.util.find_spec("textblob") is None:
        pytest.skip("the extra [text] is not installed")
    load_lexicon.cache_clear()
    mask = build("mask_words", kind="syntax", max_words=6)
    assert of(mask, "a man in a red shirt is riding a very big horse on the beach at sunset") == (
        "man red shirt horse beach sunset"
    )
    assert of(mask, LONG) == "small dog white puppy grass Paris"


def test_a_lexicon_that_is_missing_is_said_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_lexicon.cache_clear()
    kinds = [build("mask_words", kind=kind, max_words=3) for kind in ("block", "syntax")]
    with pytest.raises(ValueError, match=r"transforms\[1\]\.kind = 'syntax'.*clipjax\[text\]"):
        Loader(
            make_source("synthetic:64"),
            kinds,
            lambda texts: np.zeros((len(texts), 1), np.int32),
            batch_size=4,
            seed=0,
            preprocess=Preprocess(4),
        )


def test_each_sentence_is_in_one_chunk():
    sentences = ["One two three.", "Four five!", "Six?", "Seven eight nine ten eleven.", "Twelve"]
    chunk = build("choose_chunk", max_words=5)
    chunks = ["One two three. Four five!", "Six?", "Seven eight nine ten eleven.", "Twelve"]
    text = " ".join(sentences)
    assert chunk.chunks(text) == chunks and " ".join(chunks) == text
    found = collections.Counter(of(chunk, text, key) for key in range(400))
    assert set(found) == set(chunks) and min(found.values()) > 60
    assert of(chunk, "One. Two three. Four five.") == "One. Two three. Four five."
    assert build("choose_chunk", max_words=1).chunks("\n a b c.\n\n d。e\uff01 ") == [
        "a b c.",
        "d。",
        "e\uff01",
    ]


def test_a_prompt_is_dropped_as_often_as_is_said():
    templates = ("a {}", "a photo of a {}", "a photo of a {}.", "the {} in snow")
    drop = build("drop_prompt", templates=templates, probability=1.0)
    assert of(drop, "a photo of a red cat.") == "red cat"  # by the template that leaves least
    assert of(drop, "a photo of a cat") == of(drop, "the cat in snow") == of(drop, "a cat") == "cat"
    assert of(drop, "two cats in snow") == "two cats in snow"
    assert of(drop, "a photo of a ") == "photo of a "  # nothing would be left by the second one
    half = build("drop_prompt", templates=templates)
    found = collections.Counter(of(half, "a cat", key) for key in range(400))
    assert set(found) == {"a cat", "cat"} and 150 < found["cat"] < 250
    put = build("caption_template", templates=templates, probability=1.0)
    assert {of(drop, of(put, "cat", key)) for key in range(20)} == {"cat"}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mask_words", {}, "max_words"),
        ("mask_words", {"max_words": 0}, "max_words = 0"),
        ("mask_words", {"max_words": 3, "kind": "nouns"}, "kind = 'nouns'.*truncation"),
        ("choose_chunk", {"max_words": 0.5}, r"max_words = 0\.5"),
        ("drop_prompt", {"templates": ("a photo",)}, r"templates\[0\] = 'a photo'.*one {}"),
        ("drop_prompt", {"templates": ()}, "templates = "),
    ],
)
def test_fields_that_mean_nothing(name, fields, message):
    with pytest.raises(ValueError, match=message):
        build(name, **fields)
