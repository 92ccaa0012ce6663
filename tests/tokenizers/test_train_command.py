"""`clipjax tokenizer train` refuses what cannot be done before it reads a caption."""

import pytest


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
