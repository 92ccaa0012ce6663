import json

import numpy as np
import pytest

from clipjax.tokenizers import make_tokenizer
from clipjax.tokenizers import wordpiece as module

LONG = "a photo of a cat and a dog " * 20


def make(context_length=16, **options):
    return make_tokenizer({"name": "wordpiece", **options}, context_length=context_length)


def test_rows():
    tokenizer = make()
    assert tokenizer.vocab_size == 30_522
    row = tokenizer(["A Photo of a CAFÉ, [MASK]!"])[0].tolist()
    assert row == [101, 1037, 6302, 1997, 1037, 7668, 1010, 103, 999, 102, 0, 0, 0, 0, 0, 0]
    assert tokenizer.decode(row) == "a photo of a cafe,!"
    assert tokenizer([]).shape == (0, 16) and tokenizer([]).dtype == np.int32


def test_three_rules_for_the_end_token():
    kept, blank, none = (make(end_token=x)(["a cat", LONG]) for x in ("kept", "blank", "none"))
    assert kept[0, :5].tolist() == [101, 1037, 4937, 102, 0]
    np.testing.assert_array_equal(blank, np.where(kept == 102, 0, kept))
    np.testing.assert_array_equal(none[0], blank[0])
    # A caption that is cut has one word more where nothing is kept for the end.
    assert kept[1, -1] == 102 and blank[1, -1] == 0 and none[1, -1] not in (0, 102)
    np.testing.assert_array_equal(none[1, :-1], kept[1, :-1])


def test_a_row_without_a_start():
    bare, none = (make(end_token="none", start_token=x)(["a cat", "", LONG]) for x in (False, True))
    np.testing.assert_array_equal(bare[:, :-1], none[:, 1:])
    assert bare[2, -1] not in (0, 102)


def test_lower_case_is_a_rule():
    cased = make(lower_case=False)
    assert cased(["É"])[0, 1] == 100  # [UNK]: the vocabulary has no capitals
    assert make()(["É"])[0, 1] == make()(["e"])[0, 1]


def test_half_a_surrogate_pair_is_no_crash():
    np.testing.assert_array_equal(make()(["a \ud83d cat"]), make()(["a \ufffd cat"]))


def test_own_vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\na\r\n##b\r\n")
    tokenizer = make(model=str(path), context_length=6)
    assert tokenizer.vocab_size == 7
    assert tokenizer(["ab abb c"]).tolist() == [[2, 5, 6, 5, 6, 3]]
    assert tokenizer.contract()["sha256"] != make().contract()["sha256"]


def test_contract_tells_rules_apart():
    contract = make().contract()
    assert json.loads(json.dumps(contract)) == contract
    assert contract["sha256"] == module.VOCABULARY_SHA256
    for options in (
        {"end_token": "blank"},
        {"start_token": False},
        {"lower_case": False},
        {"cleaning": ("fix_text",)},
    ):
        assert make(**options).contract() != contract
    assert make(context_length=17).contract() != contract


def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="end_token is 'cut'; allowed are kept, blank, none"):
        make(end_token="cut")
    with pytest.raises(ValueError, match="context_length is 2: at least 3"):
        make(context_length=2)
    with pytest.raises(ValueError, match=r"cleaning is \('upper',\).*'fix_text'"):
        make(cleaning=("upper",))
    with pytest.raises(ValueError, match=r"model: there is no vocab.txt at .*none.txt"):
        make(model=str(tmp_path / "none.txt"))
    for text, message in (
        ("a\nb\n", r"without \[PAD\]"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "twice"),
        (b"\xff\xfe", "not UTF-8"),
    ):
        path = tmp_path / f"{message[:3]}.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message):
            make(model=str(path))
    with pytest.raises(ValueError, match="one string"):
        make()("a cat")
    with pytest.raises(ValueError, match="NoneType"):
        make()([None])
    damaged = tmp_path / "damaged.txt"
    damaged.write_bytes(module.VOCABULARY.read_bytes().replace(b"cat\n", b"cut\n"))
    monkeypatch.setattr(module, "VOCABULARY", damaged)
    with pytest.raises(ValueError, match="SHA-256"):
        make()


def test_another_vocabulary_than_the_shipped_one_has_to_be_given(tmp_path):
    with pytest.raises(ValueError, match=r"vocab\.txt is not shipped with clipjax; give the path"):
        make(shipped=False)
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u732b"]))
    assert make(shipped=False, model=str(file))(["\u732b"])[0][:3].tolist() == [2, 5, 3]
