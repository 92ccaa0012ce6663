import json
import os

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from clipjax.tokenizers import WordPiece, make_tokenizer, tokenizer_json

TEXTS = ["a photo of a cat", "Don't & won't!", "", "猫 😀 café", "word " * 100]


def make(model, context_length=24, **options):
    spec = {"name": "tokenizer_json", "model": str(model), **options}
    return make_tokenizer(spec, context_length=context_length)


@pytest.fixture
def xlm_roberta(vocabulary):
    return vocabulary("xlm_roberta.json")


def test_rows_of_xlm_roberta(xlm_roberta):
    tokenizer = make(xlm_roberta)
    rows = tokenizer(TEXTS)
    assert rows.shape == (5, 24) and rows.dtype == np.int32
    assert (rows[:, 0] == 0).all()  # <s>
    assert ((rows == 2).sum(axis=1) == 1).all()  # one </s>, also where a caption is cut
    assert rows[2].tolist() == [0, 2] + [1] * 22 and rows[4, -1] == 2
    assert tokenizer.pad_id == 1 and tokenizer.vocab_size == 802
    assert tokenizer.decode(rows[0]) == TEXTS[0]


def test_any_kind_of_model(tmp_path):
    """A WordPiece file gives WordPiece's rows, a byte-level BPE without a template has none."""
    ours = WordPiece(context_length=24)
    path = tmp_path / "wordpiece.json"
    path.write_text(ours.backend.to_str())
    np.testing.assert_array_equal(make(path)(TEXTS), ours(TEXTS))

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {symbol: number for number, symbol in enumerate([*alphabet, "ca", "<pad>"])}
    bpe = tokenizers.Tokenizer(models.BPE(pieces, [("c", "a")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    path = tmp_path / "bpe.json"
    path.write_text(bpe.to_str())
    tokenizer = make(path)
    rows = tokenizer(["cat 猫"])
    assert rows[0].tolist() == [pieces[x] for x in ("ca", "t", "Ġ", "ç", "Į", "«")] + [257] * 18
    assert tokenizer.decode(rows[0][:6]) == "cat 猫"


def test_the_file_s_own_truncation_and_padding_are_replaced(tmp_path, xlm_roberta):
    backend = tokenizers.Tokenizer.from_file(xlm_roberta)
    backend.enable_truncation(5, direction="left")
    backend.enable_padding(length=7, pad_id=3, direction="left")
    path = tmp_path / "other.json"
    path.write_text(backend.to_str())
    tokenizer = make(path, pad_id=1)
    np.testing.assert_array_equal(tokenizer(TEXTS), make(xlm_roberta)(TEXTS))
    assert make(path).pad_id == 3  # what a file pads with is its padding token
    assert tokenizer.special_ids == [0, 2]


def test_contract_is_that_of_the_content(tmp_path, xlm_roberta):
    contract = make(xlm_roberta).contract()
    assert json.loads(json.dumps(contract)) == contract
    copy = tmp_path / "copy.json"
    with open(xlm_roberta, "rb") as file:
        copy.write_bytes(file.read())
    assert make(copy).contract() == contract
    copy.write_bytes(copy.read_bytes() + b"\n")
    assert make(copy).contract() != contract
    assert make(xlm_roberta, cleaning=("lower",)).contract() != contract


def test_bad_input(tmp_path, xlm_roberta):
    with pytest.raises(ValueError, match=r"model is missing: .* not shipped"):
        make_tokenizer({"name": "tokenizer_json"}, context_length=24)
    with pytest.raises(ValueError, match=r"no tokenizer.json at"):
        make(tmp_path / "none.json")
    for number, data in enumerate((b"", b"{}", b"\xff", b'{"model": ' + b"[" * 5000)):
        path = tmp_path / f"bad{number}.json"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
            make(path)
    with pytest.raises(ValueError, match=r"pad_id is 802: the ids are 0\.\.801"):
        make(xlm_roberta, pad_id=802)
    with pytest.raises(ValueError, match="context_length is 2: at least 3"):
        make(xlm_roberta, context_length=2)
    path = tmp_path / "no_pad.json"
    path.write_text(tokenizers.Tokenizer(models.BPE({"a": 0}, [])).to_str())
    with pytest.raises(ValueError, match=r"pad_id is missing: .* names no padding token"):
        make(path)
    assert make(path, pad_id=0)(["aa"])[0, :3].tolist() == [0, 0, 0]


WORDS = {"type": "WordLevel", "vocab": {"<pad>": 0, "a": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
SHIFT = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
START = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
# name -> fields of the file; each made the library panic, or raise what is no ValueError.
BENT = {
    "no unknown token": {"model": {**WORDS, "unk_token": "none"}},
    "id of 33 bits": {"model": {**WORDS, "vocab": {"<pad>": 0, "[UNK]": 2**32 - 1}}},
    "no unknown piece": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["<pad>", 0.0]]}},
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////9hAAAA"}},
    "pieces of length 0": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "search without an end": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(a|aa|a+)+$"}, "content": ""}
    },
    "growth": {"normalizer": {"type": "Sequence", "normalizers": [SHIFT] * 2}},
    "start that is no id": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [START, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [START],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [7], "tokens": ["[CLS]"]}},
        }
    },
}


@pytest.mark.parametrize("name", BENT)
def test_what_the_library_cannot_use_is_one_error(tmp_path, name):
    path = tmp_path / "tokenizer.json"
    plain = {"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": WORDS}
    path.write_text(json.dumps(plain))
    assert make(path)(["a b"])[0, :3].tolist() == [1, 2, 0]
    path.write_text(json.dumps({**plain, **BENT[name]}))
    with pytest.raises(ValueError):
        make(path)([f"b {'a' * 60}!"])


def test_ids_may_leave_numbers_out(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    vocabulary = {"<pad>": 0, "a": 70_000, "[UNK]": 2}
    path.write_text(json.dumps({"version": "1.0", "model": {**WORDS, "vocab": vocabulary}}))
    tokenizer = make(path)
    assert tokenizer.vocab_size == 70_001  # rows that an embedding needs
    assert tokenizer.contract()["vocab_size"] == 3
    path.write_bytes(b"")
    os.truncate(path, 2**40)
    monkeypatch.setattr(tokenizer_json, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="at most"):
        make(path)
