"""`clipjax tokenizer`: captions become a vocabulary, which is tried; bad arguments are refused."""

import json

import numpy as np
import pytest
from PIL import Image


def test_train_and_encode(tmp_path, command):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "text": {"en": f"word{i} half of a cat {i}", "de": ["Katze \ud83d", ""]}}
        for i in range(40)
    ]
    rows += [{"image": "a.png", "text": ""}, {"image": "../a.png", "text": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = f"{tmp_path}/own.model"
    flags = ("--input", f"jsonl:{tmp_path}/a.jsonl", "--vocab_size", "300", "--out", out)
    done = command("tokenizer", "train", *flags)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[:2] == ["de: 40 captions", "en: 40 captions"]
    assert lines[2] == "left out, missing_text: 1 examples"
    assert lines[3] == "left out, path_refused: 1 examples"
    assert lines[4].startswith(f"{out}: 300 pieces, SHA-256 ")
    done = command("tokenizer", "encode", "--tokenizer", out, "A cat 3")
    assert done.code == 0 and done.out.splitlines()[0].endswith("299] -> 'a cat 3'"), done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--out=gs://bucket/x.model",), "gs://bucket/x.model is in a bucket"),
        (("--out=there.model",), "there.model exists"),
        (("--out=x.model", "--model_type=word"), "allowed are unigram, bpe"),
        (("--out=x.model", "--vocab_size=-5"), "vocab_size is -5"),
        (("--out=x.model", "--temperature=nan"), "temperature is nan"),
    ],
)
def test_arguments_are_checked_first(tmp_path, monkeypatch, command, flags, message):
    (tmp_path / "there.model").touch()
    monkeypatch.chdir(tmp_path)
    # There is no such dataset: it would be the error, were it opened.
    done = command("tokenizer", "train", "--input=folder:none", *flags)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["there.model"]
