"""Fuzzed captions: no crash, ids in range, the same ones every time."""

import collections
import unicodedata

import numpy as np
import pytest
from absl import logging
from counting import counted_calls
from strange_captions import huge_captions, strange_caption
from vocabularies import sentencepiece_model

from clipjax.data import Loader, Preprocess, SampleError, make_transforms
from clipjax.data.transforms.captions import MAX_CHARS, clean_caption
from clipjax.tokenizers import ClipBPE, SentencePiece, WordPiece

MOST_CALLS = 1_000_000
REASONS = {"text_empty", "text_encoding", "text_type"}
SPECS = (
    {"name": "choose_caption"},
    {"name": "drop_word", "probability": 0.7},
    {"name": "caption_template", "templates": ("a photo of {}", "{}!")},
)


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.model"
    texts = ("a photo of a cat", "ein Hund im Garten", "caf\u00e9 au lait")
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    model = sentencepiece_model(texts, 300, model_type="bpe", byte_fallback=True, **ids)
    path.write_bytes(model)
    return {
        "clip_bpe": lambda: ClipBPE(context_length=20),
        "sentencepiece": lambda: SentencePiece(model=str(path), context_length=20),
        "wordpiece": lambda: WordPiece(context_length=20),
    }


def captions(number):
    rng = np.random.Generator(np.random.Philox(key=17))
    return [strange_caption(rng) for _ in range(number)]


def cleaned(caption):
    """The caption as the loader tokenizes it, or the reason of its refusal."""
    try:
        text = clean_caption(caption)
    except SampleError as error:
        assert error.message
        return None, error.reason
    assert text.strip() and "\0" not in text
    assert unicodedata.normalize("NFC", text) == text
    return text, "clean"


def transformed(text, number):
    rng = np.random.Generator(np.random.Philox(key=number))
    example = {"image": np.zeros((1, 1, 3), np.uint8), "text": text, "key": ""}
    for transform in make_transforms(SPECS, image_size=4):
        example = transform(example, rng)
    return example["text"]


def wrong_rows(rows, tokenizer):
    """How many rows hold something else than ids of that tokenizer."""
    ok = (rows >= 0) & (rows < tokenizer.vocab_size)
    if hasattr(tokenizer, "start_id") and tokenizer.start_id is not None:
        ok[:, 0] &= rows[:, 0] == tokenizer.start_id
    if getattr(tokenizer, "end_id", None) is not None:
        ok[:, 0] &= (rows == tokenizer.end_id).any(axis=1)
    return int((~ok.all(axis=1)).sum())


def campaign(strange, makers):
    """Cleans, transforms and tokenizes; gives counts by outcome and the most calls of a step."""
    counts, most = collections.Counter(), collections.Counter()
    tokenizers = {name: make() for name, make in makers.items()}
    texts, rows = [], collections.defaultdict(list)
    for number, caption in enumerate(strange):
        with counted_calls() as calls:
            text, reason = cleaned(caption)
        most["clean"] = max(most["clean"], calls.number)
        counts[reason] += 1
        if text is None:
            continue
        with counted_calls() as calls:
            other = transformed(text, number)
        assert isinstance(other, str) and other == transformed(text, number)
        most["transform"] = max(most["transform"], calls.number)
        for text_ in (text, other):
            texts.append(text_)
            for name, tokenizer in tokenizers.items():
                with counted_calls() as calls:
                    rows[name].append(tokenizer([text_])[0])
                most[name] = max(most[name], calls.number)
    for name, tokenizer in tokenizers.items():
        found = np.array(rows[name])
        counts["wrong ids"] += wrong_rows(found, tokenizer)
        # By a tokenizer that has met nothing, in the other order, in batches.
        fresh, again = makers[name](), []
        for start in range(0, len(texts), 50):
            again.append(fresh(texts[::-1][start : start + 50]))
        counts["other ids"] += int((np.concatenate(again)[::-1] != found).any(axis=1).sum())
    return counts, most


def check(number, makers):
    counts, most = campaign(captions(number), makers)
    assert counts["wrong ids"] == counts["other ids"] == 0
    assert set(counts) <= REASONS | {"clean", "wrong ids", "other ids"}
    assert counts["clean"] > number / 2
    assert counts["text_empty"] > number / 50 and counts["text_encoding"] > number / 10
    assert sum(counts.values()) == number
    assert max(most.values()) < MOST_CALLS, most
    return counts, most


def test_few_fuzzed_captions(makers):
    check(250, makers)


@pytest.mark.nightly
def test_ten_thousand_fuzzed_captions(makers):
    counts, most = check(10_000, makers)
    logging.info("%s, most calls %s", dict(counts), dict(most))


def check_megabytes(strange, makers):
    counts, most = campaign(strange, makers)
    logging.info("%s, most calls %s", dict(counts), dict(most))
    assert counts["wrong ids"] == counts["other ids"] == 0
    assert max(most.values()) < MOST_CALLS, most


def test_a_megabyte_of_spaces_or_bytes(makers):
    check_megabytes(huge_captions()[::6], makers)


@pytest.mark.nightly
def test_megabytes(makers):
    check_megabytes(huge_captions(), makers)


def test_what_is_cut_off_is_beyond_every_context(makers):
    long = "one of many words, " * (MAX_CHARS // 19 + 9)
    assert len(clean_caption(long)) == MAX_CHARS < len(long)
    for make in makers.values():
        np.testing.assert_array_equal(make()([clean_caption(long)]), make()([long]))


class Captions:
    """A picture with each of the captions."""

    class_names = None

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        image = np.full((2, 2, 3), index % 256, np.uint8)
        return {"image": image, "text": self.texts[index], "key": str(index)}

    def fingerprint(self):
        return "captions"


def test_the_loader_counts_what_it_refuses(makers):
    strange = [c for c in captions(500) if isinstance(c, str)]
    strange = strange[: len(strange) // 20 * 20]
    expected = {str(i): cleaned(c)[1] for i, c in enumerate(strange)}
    expected = {key: reason for key, reason in expected.items() if reason != "clean"}
    reasons, counted = {}, 0
    tokenizer = makers["clip_bpe"]()
    with Loader(
        Captions(strange),
        (),
        tokenizer,
        batch_size=20,
        seed=0,
        preprocess=Preprocess(2),
        max_bad_fraction=1.0,
    ) as loader:
        for step in range(len(strange) // 20):
            assert wrong_rows(loader.batch(step)["text"], tokenizer) == 0
            total = sum(loader.counts().values())
            new = loader.bad_examples()[-(total - counted) :] if total > counted else ()
            reasons |= {example.key: example.reason for example in new}
            counted = total
    assert reasons == expected and len(expected) > 10


def test_oracles_see_what_they_look_for(makers):
    """Negative controls: an id too many, a memory that changes ids, an error that gets out."""
    strange = captions(60)

    class Shifted(ClipBPE):
        def __call__(self, texts):
            rows = super().__call__(texts)
            rows[:, 1] += self.vocab_size * (rows[:, 1] % 5 == 0)
            return rows

    class Forgetful(ClipBPE):
        def __call__(self, texts):
            self.calls = getattr(self, "calls", 0) + 1
            return super().__call__([text + "x" * (self.calls % 3) for text in texts])

    assert campaign(strange, {"x": lambda: Shifted(context_length=20)})[0]["wrong ids"] > 0
    assert campaign(strange, {"x": lambda: Forgetful(context_length=20)})[0]["other ids"] > 0
    with pytest.raises(UnicodeError):
        for caption in strange:
            cleaned(caption.decode() if isinstance(caption, bytes) else caption)
