"""Captions in many languages, in the layouts of their authors."""

import json

import pytest
from archives import png

from clipjax.data import make_source


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(png(ord(name)))
    return tmp_path


def crossmodal(folder, rows):
    file = folder / "captions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"xm3600:{file}"


def test_crossmodal(pictures):
    rows = [
        {"image/key": "a", "image/locale": "de", "de": {"caption": ["x", "y"], "caption/t": []},
         "th": {"caption": ["z"]}},
        {"image/key": "b", "de": {"caption": ["w"]}, "th": {"caption": ["v"]}},
    ]  # fmt: skip
    spec = crossmodal(pictures, rows)
    german, thai = (make_source(f"{spec}?language={name}") for name in ("de", "th"))
    assert [german[i]["text"] for i in range(2)] == [("x", "y"), "w"]
    assert (thai[0]["text"], thai[0]["key"], thai[0]["image"]) == ("z", "a.jpg", png(ord("a")))
    assert make_source(spec)[1]["text"] == {"de": "w", "th": "v"}
    assert german.fingerprint() != thai.fingerprint()
    with pytest.raises(ValueError, match="no captions in 'fr'; it has de, th"):
        make_source(f"{spec}?language=fr")
    with pytest.raises(ValueError, match=r"'a\.jpg' twice"):
        make_source(crossmodal(pictures, rows[:1] * 2))
    with pytest.raises(ValueError, match="line 1 has no `image/key`"):
        make_source(crossmodal(pictures, [{"key": "a"}]))


def test_xtd10(pictures):
    names = pictures / "test_image_names.txt"
    names.write_text("a.jpg\nb.jpg\n")
    (pictures / "test_1kcaptions_ko.txt").write_text("고양이\n개\n", encoding="utf-8")
    source = make_source(f"xtd10:{names}?language=ko")
    assert [source[i]["text"] for i in range(2)] == ["고양이", "개"]
    (pictures / "test_1kcaptions_ko.txt").write_text("고양이\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 captions, and .* 2 pictures"):
        make_source(f"xtd10:{names}?language=ko")
    with pytest.raises(ValueError, match="test_1kcaptions_en"):
        make_source(f"xtd10:{names}")
