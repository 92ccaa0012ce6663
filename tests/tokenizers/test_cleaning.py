# ruff: noqa: RUF001
import html

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messy_captions import captions

from clipjax.tokenizers import cleaning
from clipjax.tokenizers.cleaning import CLEANING, Cleaner, fix_text


def plain(text):
    """The published rule, without the way past it."""
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def passes(text):
    return bool(cleaning.SAFE_ASCII.fullmatch(text) or cleaning.SAFE_LINE.fullmatch(text))


def test_what_goes_past_ftfy_is_what_it_leaves_as_it_is():
    texts = captions(4_000)
    assert [text for text in texts if fix_text(text) != plain(text)] == []
    assert sum(map(passes, texts)) > 500


def test_each_character_that_goes_past_ftfy_is_left_by_it():
    """Every character below U+3400, and some of what is above."""
    characters = [*range(0x3400), *range(0xA000, 0x20000, 7), *range(0x20000, 0x110000, 977)]
    texts = [f"a{chr(c)} b" for c in characters if not 0xD800 <= c < 0xE000]
    assert [text for text in texts if passes(text) and fix_text(text) != plain(text)] == []
    assert sum(map(passes, texts)) > 15_000


def test_a_wider_way_past_is_seen(monkeypatch):
    """Negative control: with full-width letters let through, both tests above fail."""
    pattern = cleaning.SAFE_LINE.pattern.replace(r"\ufe1f", r"\ufe1f\uff01-\uff5e")
    assert pattern != cleaning.SAFE_LINE.pattern
    monkeypatch.setattr(cleaning, "SAFE_LINE", cleaning.re.compile(pattern))
    assert fix_text("aＡ b") != plain("aＡ b")
    assert any(fix_text(text) != plain(text) for text in captions(2_000))


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.characters(max_codepoint=0x2FF) | st.sampled_from("&;#amp \u2019Ã©â€"), max_size=12)
)
def test_any_text(text):
    assert fix_text(text) == plain(text)


def test_steps():
    assert {name: function("  A_b.ΑΣ &amp;amp; ") for name, function in CLEANING.items()} == {
        "fix_text": "  A_b.ΑΣ & ",
        "underscores_to_spaces": "  A b.ΑΣ &amp;amp; ",
        "strip_punctuation": "  AbΑΣ ampamp ",
        "lower": "  a_b.ας &amp;amp; ",
        "lower_each_character": "  a_b.ασ &amp;amp; ",
        "collapse_whitespace": "A_b.ΑΣ &amp;amp;",
    }
    assert Cleaner(("lower", "strip_punctuation"))(["A!", "\ud800x\ud83d\ude00"]) == [
        "a",
        "\ufffdx\N{GRINNING FACE}",
    ]


def test_bad_steps():
    for steps in (("lower", "upper"), "lower"):
        with pytest.raises(ValueError, match=r"tokenizer\.cleaning is"):
            Cleaner(steps)


def test_numbers_of_any_length_are_characters():
    """Python refuses to read a number of more than 4,300 digits, and a caption may hold one."""
    assert fix_text(f"a &#{'9' * 5000}; b") == "a \ufffd b"
    assert fix_text(f"&#{'0' * 5000}65; &#x{'0' * 5000}42; &#{'9' * 5000} &#67;") == "A B \ufffd C"
