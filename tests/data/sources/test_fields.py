"""Captions as they come into an example: what is kept of them, and why none is left."""

import numpy as np
import pytest

from clipjax.data import SampleError
from clipjax.data.sources.fields import text_of
from clipjax.data.transforms.captions import choose_text


@pytest.mark.parametrize(
    "value, text",
    [
        ("a cat", "a cat"),
        (["a", "b"], ("a", "b")),
        (["a", "", " \u3000", None, 3, float("nan"), "b"], ("a", "b")),
        (["a", ""], "a"),
        ({"en": "a", "de": ["b", ""], "fr": " ", "it": None}, {"en": "a", "de": "b"}),
        ({"x": ["a", "b"], "y": {"en": "c", "de": ""}}, {"x": ("a", "b"), "y": {"en": "c"}}),
        ("caf\u00e9".encode(), "caf\u00e9"),
        ([b"a", b"\xff", "b"], ("a", "b")),
        ("half \ud83d pair", "half \ufffd pair"),
        (["whole \ud83d\ude00"], "whole \U0001f600"),
        ({"\udc80": "x"}, {"\ufffd": "x"}),
    ],
)  # fmt: skip
def test_what_is_kept(value, text):
    assert text_of(value, "k") == text


@pytest.mark.parametrize(
    "value, language, reason",
    [
        (None, None, "missing_text"),
        ("", None, "missing_text"),
        (" ", "de", "missing_text"),
        ([], None, "missing_text"),
        (["", None], None, "missing_text"),
        (3, None, "missing_text"),
        ({"en": "", "de": []}, None, "missing_text"),
        ({"en": "x", "de": " "}, "de", "filtered_language"),
        ({"en": "x"}, "de", "filtered_language"),
        ("a caption that names no language", "de", "filtered_language"),
        (["a", "b"], "de", "filtered_language"),
        (b"caf\xe9", None, "text_encoding"),
        ([b"caf\xe9", ""], None, "text_encoding"),
        ({"de": b"caf\xe9"}, "de", "text_encoding"),
    ],
)
def test_why_none_is_left(value, language, reason):
    with pytest.raises(SampleError) as caught:
        text_of(value, "k", language)
    assert (caught.value.reason, caught.value.key) == (reason, "k")


def test_a_language_is_taken_from_a_map():
    assert text_of({"en": "x", "de": ["a", "b"]}, "k", "de") == ("a", "b")


def test_captions_of_a_source_of_ones_own():
    """Bytes are one caption, not many numbers; a map may hold maps."""
    rng = np.random.default_rng(0)
    assert choose_text("caf\u00e9".encode(), rng) == choose_text(["caf\u00e9".encode()], rng)
    assert choose_text({"a": {"b": ("c",)}}, rng) == "c"
    with pytest.raises(SampleError, match="not UTF-8") as caught:
        choose_text(b"\xff", rng)
    assert caught.value.reason == "text_encoding"
