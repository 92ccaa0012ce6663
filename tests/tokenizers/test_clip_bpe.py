import functools
import json
from pathlib import Path

import numpy as np
import pytest
from counting import counted_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.tokenizers import TOKENIZERS, ClipBPE, make_tokenizer
from clipjax.tokenizers import clip_bpe as module

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/tokenizers/clip_bpe.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer({"name": "clip_bpe"}, context_length=77)


def test_ids_are_the_reference_s(tokenizer):
    assert len(GOLDEN["ids"]) >= 190
    wrong = [text for text, ids in GOLDEN["ids"].items() if tokenizer.encode(text) != ids]
    assert wrong == []


def test_rows_are_the_reference_s(tokenizer):
    texts = list(GOLDEN["rows_of_77"])
    np.testing.assert_array_equal(tokenizer(texts), list(GOLDEN["rows_of_77"].values()))


def test_both_spellings_of_the_special_tokens(tokenizer):
    other = ClipBPE(start_token="<start_of_text>", end_token="<end_of_text>")
    for text, ids in GOLDEN["openai_specials"].items():
        assert tokenizer.encode(text) == ids
        assert other.encode(text) != ids
    for text, ids in GOLDEN["open_clip_specials"].items():
        assert other.encode(text) == ids


@pytest.mark.parametrize("fault", ["no cleaning", "no lower case", "merges swapped"])
def test_the_goldens_see_a_fault(fault, monkeypatch):
    """Negative control: each rule left out is noticed."""
    if fault == "no cleaning":
        monkeypatch.setattr(module, "clean_text", lambda t: " ".join(t.split()).lower())
    elif fault == "no lower case":
        monkeypatch.setattr(module, "clean_text", lambda t: " ".join(t.split()))
    else:
        merges = list(module.load_merges())
        merges[1], merges[2] = merges[2], merges[1]
        monkeypatch.setattr(module, "load_merges", lambda: tuple(merges))
        for name in ("own_symbols", "byte_pairs"):  # which keep what they made of the true ones
            anew = functools.cache(getattr(module, name).__wrapped__)
            monkeypatch.setattr(module, name, anew)
    faulty = ClipBPE()
    assert any(faulty.encode(text) != ids for text, ids in GOLDEN["ids"].items())


def test_sizes_and_shape(tokenizer):
    assert tokenizer.vocab_size == 49_408
    assert (tokenizer.start_id, tokenizer.end_id) == (49_406, 49_407)
    for length in (3, 16, 77, 300):
        tokens = ClipBPE(context_length=length)(["word " * 100, "", "a cat"])
        assert tokens.shape == (3, length) and tokens.dtype == np.int32
        assert (tokens[:, 0] == 49_406).all()
        assert ((tokens == 49_407).sum(axis=1) == 1).all()
        assert (np.argmax(tokens, axis=1)[0] == length - 1) == (length < 102)
        assert (tokens[1, 2:] == 0).all()
    assert tokenizer([]).shape == (0, 77)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60))
def test_any_text_is_encoded_and_read_back(text):
    tokenizer = ClipBPE_CACHED
    ids = tokenizer.encode(text)
    assert all(0 <= number < 49_408 for number in ids)
    words = "".join(module.clean_text(text).split())
    decoded = tokenizer.decode(ids)
    if "<|" not in words:
        assert "".join(decoded.split()) == words


ClipBPE_CACHED = ClipBPE()


def test_the_work_of_a_word_grows_as_its_length():
    """Merging pair by pair through the whole word would take its square."""
    numbers = []
    for pairs in (5_000, 50_000):
        with counted_calls() as calls:
            ClipBPE()(["ab" * pairs])
        numbers.append(calls.number)
    assert numbers[1] < 12 * numbers[0]


def test_memory_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_REMEMBERED_WORDS", 8)
    tokenizer = ClipBPE()
    tokenizer([f"word{letter}" for letter in "abcdefghijklmnop"])
    assert len(tokenizer.remembered) <= 8
    assert tokenizer.encode("a cat") == ClipBPE_CACHED.encode("a cat")


def test_a_damaged_vocabulary_is_refused(tmp_path, monkeypatch):
    damaged = bytearray(module.VOCABULARY.read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "v.gz").write_bytes(damaged)
    monkeypatch.setattr(module, "VOCABULARY", tmp_path / "v.gz")
    with pytest.raises(ValueError, match="SHA-256"):
        module.load_merges.__wrapped__()


def test_contract_is_json_and_tells_tokenizers_apart(tokenizer):
    contract = json.loads(json.dumps(tokenizer.contract()))
    assert contract["sha256"] == module.VOCABULARY_SHA256
    assert contract != ClipBPE(context_length=64).contract()


def test_bad_input(tokenizer):
    with pytest.raises(ValueError, match="one string"):
        tokenizer("a cat")
    with pytest.raises(ValueError, match="NoneType"):
        tokenizer(["a cat", None])
    with pytest.raises(ValueError, match="context_length is 2"):
        ClipBPE(context_length=2)
    with pytest.raises(ValueError, match="clip_bpe"):
        make_tokenizer({"name": "clip_bpee"}, context_length=77)
    with pytest.raises(ValueError, match="lowercase"):
        make_tokenizer({"name": "clip_bpe", "lowercase": True}, context_length=77)
    assert set(TOKENIZERS) == {"clip_bpe", "sentencepiece", "tokenizer_json", "wordpiece"}
