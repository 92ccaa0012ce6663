"""`clipjax tokenizer`: captions of a dataset become a vocabulary, which is tried on a text."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clipjax.cli import tokenizer


@pytest.fixture
def run(monkeypatch):
    def call(*arguments, **flags):
        defaults = {"vocab_size": 300, "model_type": "unigram", "temperature": 1.0}
        for name in ("input", "out", "vocab_size", "model_type", "temperature", "tokenizer"):
            value = flags.get(name, defaults.get(name))
            monkeypatch.setattr(tokenizer, f"_{name.upper()}", SimpleNamespace(value=value))
        return tokenizer.main(["clipjax tokenizer", *arguments])

    return call


def test_train_and_encode(run, tmp_path, capsys):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "text": {"en": f"word{i} half of a cat {i}", "de": ["Katze \ud83d", ""]}}
        for i in range(40)
    ]
    rows += [{"image": "a.png", "text": ""}, {"image": "../a.png", "text": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "own.model"
    assert run("train", input=f"jsonl:{tmp_path}/a.jsonl", out=str(out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["de: 40 captions", "en: 40 captions"]
    assert lines[2:4] == [
        "left out, missing_text: 1 examples",
        "left out, path_refused: 1 examples",
    ]
    assert lines[4].startswith(f"{out}: 300 pieces, SHA-256 ")
    assert run("encode", "A cat 3", tokenizer=str(out)) == 0
    assert capsys.readouterr().out.rstrip().endswith("299] -> 'a cat 3'")


def test_what_is_missing_is_said(run):
    for arguments, message in (
        ([], "COMMAND one of encode, train"),
        (["train"], "--input SPEC is missing"),
        (["encode", "x"], "--tokenizer FILE"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*arguments)
