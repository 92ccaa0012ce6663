import random
import re

import pytest

from clipjax.tokenizers import make_tokenizer
from clipjax.tokenizers.training import sample_languages, train_sentencepiece

_draw = random.Random(0)
SYLLABLES = ["ba", "ce", "di", "fo", "gu", "har", "jel", "kim", "lon", "mup"]
ENGLISH = ["a red cat"] + [
    " ".join("".join(_draw.choices(SYLLABLES, k=3)) for _ in range(3)) for _ in range(59)
]
GERMAN = ["eine rote Katze", "ein grüner Hund"]
CAPTIONS = {"en": ENGLISH * 2, "de": GERMAN * 5}


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_every_text_comes_back(tmp_path, model_type):
    out = tmp_path / "own.model"
    digest = train_sentencepiece(CAPTIONS, out, vocab_size=300, model_type=model_type)
    tokenizer = make_tokenizer({"name": "sentencepiece", "model": str(out)}, context_length=64)
    assert tokenizer.vocab_size == 300
    assert tokenizer.contract()["sha256"] == digest
    assert (tokenizer.pad_id, tokenizer.end_id) == (0, 299)
    # Bytes spell what was never seen: nothing is unknown.
    texts = [ENGLISH[1], "ein grüner hund", "猫 ☂ ½"]
    rows = tokenizer(texts)
    assert [tokenizer.decode(row) for row in rows] == [*texts[:2], "猫 ☂ 1\u20442"]
    assert (rows != 1).all() and (rows.max(axis=1) == 299).all()
    assert (rows[0] != 0).sum() < len(ENGLISH[1])


def test_the_same_captions_give_the_same_file(tmp_path):
    digests = [
        train_sentencepiece(captions, tmp_path / f"{i}.model", vocab_size=300)
        for i, captions in enumerate((CAPTIONS, CAPTIONS, {"en": CAPTIONS["en"]}))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.model", "1.model", "2.model"]


@pytest.mark.parametrize(("temperature", "german"), [(1.0, 10), (2.0, 35), (1e6, 120)])
def test_temperature_makes_rare_languages_frequent(temperature, german):
    texts = list(sample_languages(CAPTIONS, temperature, lower_case=True))
    assert len(texts) == 120 + german
    assert sum("grüner" in text for text in texts) == german // 2
    assert texts[0] == "eine rote katze"


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        (CAPTIONS, {"vocab_size": 100}, "is 100: at least 260, as 259 pieces"),
        (CAPTIONS, {"vocab_size": 50_000}, r"of 50000 pieces .*: lower vocab_size to at most \d+$"),
        (CAPTIONS, {"vocab_size": 262}, r"characters alone need \d+; raise vocab_size"),
        (CAPTIONS, {"vocab_size": 300, "temperature": float("nan")}, "temperature is nan"),
        (CAPTIONS, {"vocab_size": 300, "model_type": "word"}, "allowed are unigram, bpe"),
        (CAPTIONS, {"vocab_size": 300, "temperature": 0.5}, "at least 1"),
        ({"en": []}, {"vocab_size": 300}, "no captions"),
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path, captions, options, message):
    with pytest.raises(ValueError, match=message):
        train_sentencepiece(captions, tmp_path / "own.model", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("wrong", [262, 50_000])
def test_the_size_that_is_named_is_the_last_that_can_be_had(tmp_path, model_type, wrong):
    def train(size):
        out = tmp_path / f"{size}.model"
        return train_sentencepiece(CAPTIONS, out, vocab_size=size, model_type=model_type)

    with pytest.raises(ValueError) as told:
        train(wrong)
    limit = int(re.search(r"(?:at most|alone need) (\d+)", str(told.value))[1])
    train(limit)
    with pytest.raises(ValueError, match="no vocabulary of"):
        train(limit - 1 if wrong == 262 else limit + 1)


def test_nothing_is_overwritten(tmp_path):
    out = tmp_path / "own.model"
    out.write_bytes(b"in use")
    with pytest.raises(ValueError, match="exists"):
        train_sentencepiece(CAPTIONS, out, vocab_size=300)
    assert out.read_bytes() == b"in use"
