import io

import numpy as np
import pytest
from archives import png
from PIL import Image, ImageFont

from clipjax.data.inspect import contact_sheet as module
from clipjax.data.inspect.contact_sheet import contact_sheet, wrap
from clipjax.data.source import SampleError

RED = (200, 0, 0)
CAPTIONS = (
    "a cat",
    {"de": ("Katze", "<b>Kater</b>"), "en": "a cat"},
    "\u732b\u304c\u597d\u304d\u3067\u3059 " * 30,
    "\u0642\u0637\u0629 \u05d7\u05ea\u05d5\u05dc \U0001f600 \U0010ffff \0\x1b\u200f",
    "w" * 10_000,
    "",
)


class Pairs:
    class_names = None

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 9:
            raise SampleError("damaged", "its checksum < 0", "k9")
        image = np.full((90, 120, 3), RED, np.uint8) if index % 2 else png(index)
        return {"image": image, "text": CAPTIONS[index % len(CAPTIONS)], "key": f"k{index}"}


def test_the_page_shows_pictures_and_escapes_captions():
    page = contact_sheet(Pairs(), "a < b", np.arange(10), ".html").decode()
    assert page.count("<img") == 9 and "de: &lt;b&gt;Kater&lt;/b&gt;" in page
    assert "a &lt; b" in page and "its checksum &lt; 0 [damaged]" in page
    assert "<b>" not in page and "<script" not in page


@pytest.mark.parametrize("fonts", [module.FONTS, ("there is none",)])
def test_the_picture_shows_pictures_and_captions(monkeypatch, fonts):
    monkeypatch.setattr(module, "FONTS", fonts)
    content = contact_sheet(Pairs(), "tar:/data/*.tar", np.arange(10), ".png")
    sheet = np.asarray(Image.open(io.BytesIO(content), formats=["PNG"])).astype(int)
    assert sheet.shape[1] == 8 * 172 + 12  # ten pairs are two rows
    assert (sheet == RED).all(-1).sum() == 4 * 120 * 90
    cells = [sheet[39 + r * 277 :][:277, 12 + c * 172 :][:, :172] for r in (0, 1) for c in range(8)]
    inked = [(cell[160:] < 100).all(-1).sum() for cell in cells[:8]]
    # A longer caption takes more ink, and none leaves its cell; keys are grey.
    assert all(inked[:5]) and inked[1] > inked[0] and inked[4] > inked[1] and inked[5] == 0
    assert (sheet[:, :8] == 255).all() and (sheet[:, 12 + 160 :: 172] == 255).mean() > 0.97
    assert (cells[9][:40] < 100).any() and (cells[10] == 255).all()  # the error, and nothing


def test_texts_are_broken_at_blanks():
    font = ImageFont.load_default(12)
    text = "a red cat on a blue mat and a grey dog under the white bench"
    lines = wrap(text.replace(" ", "\n "), font, 90, 20)
    assert " ".join(lines) == text and len(lines) > 3
    assert all(font.getlength(line) <= 90 for line in lines)
    assert "".join(wrap("x" * 100, font, 90, 20)) == "x" * 100
    cut = wrap("a red cat on a blue mat", font, 90, 1)
    assert cut == [cut[0]] and cut[0].endswith("\u2026")
    assert wrap("", font, 90, 3) == [""] and wrap("WW", font, 1, 9) == ["W", "W"]
