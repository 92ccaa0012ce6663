"""Credentials are found by where they stand, and nothing else is touched."""

import re

import pytest

from clipjax import redaction
from clipjax.config import default_config, to_plain
from clipjax.models.zoo import MODELS
from clipjax.redaction import REDACTED, is_secret_name, redact, redact_tree

LEAKS = [
    "tar:s3://user:CANARY@bucket/{00..10}.tar",
    "s3://user:se/CANARY+x@bucket/x",
    "https://user:p@CANARY@host/x",
    "no checkpoint at /here/s3:/user:CANARY@b/x: no such path",
    "https://CANARY@github.com/x",
    "cannot read 'gs://u:CANARY@b/x', nor s3://u:CANARY@b/y",
    "tar:gs://b/x.tar?token=CANARY&filter=a.parquet:top=0.3",
    "tar:x?key=CANARY,CANARY",
    "--config.data.source=tar:x?ignore=npy&api_key=CANARY",
    "https://b/x?X-Amz-Signature=CANARY&X-Amz-Date=2026&X-Amz-Credential=CANARY%2Fus",
    "https://b/x?X-Amz-Security-Token=CANARY",
    "https://b/x?AWSAccessKeyId=CANARY&Signature=CANARY&Expires=1",
    "https://b/x?X-Goog-Signature=CANARY",
    "https://b/x?sv=2026&sig=CANARY%3D",
    "https://b/x#access_token=CANARY",
    "AWS_SECRET_ACCESS_KEY=CANARY",
    "WANDB_API_KEY = 'CANARY with blanks'",
    'password="CANARY that does not end',
    "{'token': 'CANARY', 'a': 'b'}",
    '{"client_secret": "CANARY"}',
    "data:\n  password: CANARY\n  source: x",
    "Authorization: Bearer CANARY",
    "authorization: basic CANARY",
]


@pytest.mark.parametrize("text", LEAKS)
def test_credentials_are_taken_out(text, monkeypatch):
    found = redact(text)
    assert "CANARY" not in found and REDACTED in found
    assert redact(found) == found
    # Negative control: without the patterns all of it is there.
    nothing = re.compile("(?!)(.)")
    for name in ("USER_INFO", "HEADER", "NAME", "ENTRY", "LINE"):
        monkeypatch.setattr(redaction, name, nothing)
    assert redact(text) == text


def test_the_rest_stays():
    assert redact("tar:s3://u:x@b/a.tar?token=x&filter=s.parquet:top=0.3") == (
        "tar:s3://[redacted]@b/a.tar?token=[redacted]&filter=s.parquet:top=0.3"
    )
    for text in (
        "http://localhost:9000/bucket/a@b.tar",
        "memory:///a:b@c",
        "tar:gs://bucket/{00000..00331}.tar?ignore=npy,cls&filter=scores.parquet:top=0.3",
        "tokens=3 tokenizer=clip_bpe pad_token='<pad>' text_key=caption keys=2 monkey=1",
        "config.optimizer.learning_rate = 0.1 differs",
        "a photo of a key: it opens the secret garden",
        "mail to a@b.org",
    ):
        assert redact(text) == text


def test_trees():
    tree = {
        "data": {"source": {"spec": "tar:s3://u:CANARY@b/x", "token": "CANARY", "pin": 3}},
        "credentials": {"name": "CANARY", "numbers": [1234, None, True]},
        "evals": ({"source": "csv:x?key=CANARY"},),
    }
    found = redact_tree(tree)
    assert "CANARY" not in str(found) and "1234" not in str(found)
    assert found["data"]["source"]["pin"] == 3 and found["evals"][0]["source"] == (
        "csv:x?key=[redacted]"
    )
    assert redact_tree(found) == found and "CANARY" in str(tree)


def test_a_class_may_be_called_key():
    words = {"templates": {"key": ["a photo of a key"], "token": ("a coin",)}}
    tree = {"evals": {"zero_shot": {**words, "class_names": ["key=1", "secret=x"]}}}
    assert redact_tree(tree) == tree
    tree["evals"]["zero_shot"]["templates"] = "s3://user:CANARY@bucket/templates.txt"
    assert "CANARY" not in str(redact_tree(tree))


def test_no_field_of_ours_looks_like_a_credential():
    for tree in (to_plain(default_config()), to_plain(dict(MODELS))):
        assert redact_tree(tree) == tree


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("key", "token", "accessToken", "hf_token", "APIKey", "sig")),
        *((name, False) for name in ("keys", "tokens", "tokenizer", "eos_token", "image_key", "")),
    ],
)
def test_names(name, secret):
    assert is_secret_name(name) is secret


@pytest.mark.parametrize("piece", ["a=", "a.", "://a:", "'a':\"", "token='", "bearer ", "a: ", "="])
def test_a_long_text_is_read_once(piece, monkeypatch):
    """Work is counted, by names that are judged: each is judged once, whatever stands around."""
    judged = []

    def judge(name):
        judged.append(len(name))
        return False

    monkeypatch.setattr(redaction, "is_secret_name", judge)
    text = piece * 3000
    assert redact(text).replace(REDACTED, "")[:2] in (text[:2], "be", "//")
    assert sum(judged) <= 3 * len(text)
