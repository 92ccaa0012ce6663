import json

import numpy as np
import pytest
from vocabularies import sentencepiece_model

from clipjax.tokenizers import make_tokenizer

TEXTS = ("a photo of a cat", "a photo of a dog", "two birds on a wire", "The Cat, and the dog!")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("sp") / "x.model"
    path.write_bytes(sentencepiece_model(TEXTS, 60))
    return str(path)


def make(model, context_length=32, **options):
    return make_tokenizer(
        {"name": "sentencepiece", "model": model, **options}, context_length=context_length
    )


def test_end_token_stays_when_cut(model):
    for length in (4, 64):
        tokenizer = make(model, length)
        tokens = tokenizer(TEXTS)
        assert tokens.shape == (4, length) and tokens.dtype == np.int32
        assert ((tokens == tokenizer.end_id).any(axis=1)).all()
    assert (tokens[:, -1] == tokenizer.pad_id).all()
    assert tokenizer.decode(tokens[0]) == TEXTS[0]


def test_rules_are_fields(model):
    assert (make(model)(["The CAT"]) == make(model)(["the cat"])).all()
    assert (make(model, cleaning=())(["THE"]) != make(model, cleaning=())(["the"])).any()
    plain = make(model, cleaning=("strip_punctuation", "collapse_whitespace"))
    assert (plain(["the, cat !"]) == plain(["the cat"])).all()
    assert (make(model)(["the, cat!"]) != make(model)(["the cat"])).any()
    assert (make(model, pad_id=5)(["a"])[0, -5:] == 5).all()
    assert make(model, start_id=1)(["a"])[0, 0] == 1


def test_contract(model):
    contract = make(model).contract()
    assert json.loads(json.dumps(contract)) == contract
    assert contract != make(model, cleaning=()).contract()


def test_bad_input(model, tmp_path):
    with pytest.raises(ValueError, match="no SentencePiece model"):
        make(str(tmp_path / "none.model"))
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        make(str(tmp_path / "bad.model"))
    with pytest.raises(ValueError, match="pad_id is 9999"):
        make(model, pad_id=9999)
