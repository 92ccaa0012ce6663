"""A sheet of pictures with their captions, as a page or as one picture."""

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipjax.data.captions import flatten
from clipjax.data.images.preprocess import as_pil, to_rgb
from clipjax.data.source import DataSource, SampleError, read_example
from clipjax.printable import html_words, line_text, printable

SUFFIXES = (".html", ".png")
_THUMBNAIL, _GAP, _LINE = 160, 12, 15  # pixels
_COLUMNS, _LINES = 8, 6  # pairs a row, lines of a caption
# The first of them that the machine has; Pillow's own font knows Latin letters only.
FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em}"
    "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));gap:1em}"
    "figure{margin:0}img{max-width:100%}small{color:#888;overflow-wrap:anywhere}"
)


def contact_sheet(source: DataSource, title: str, indices: np.ndarray, suffix: str) -> bytes:
    """Gives a sheet of pictures with their captions.

    Args:
        suffix: `.html`, one file without scripts, or `.png`. There, long captions are cut, and
            letters that no font of the machine has are boxes.
    """
    pairs, title = thumbnails(source, indices), line_text(title)
    return _page(pairs, title).encode("utf-8") if suffix == ".html" else _picture(pairs, title)


def thumbnails(
    source: DataSource, indices: Sequence[int] | np.ndarray
) -> Iterator[tuple[Image.Image | None, list[str], str]]:
    """Gives thumbnail, captions and key of examples, printable; of what is unusable the error."""
    for index in indices:
        key = ""
        try:
            example = read_example(source, int(index))
            key = example["key"]
            image = to_rgb(as_pil(example["image"]))
        except SampleError as error:
            named = error.key or not key
            yield None, [line_text(error if named else f"{key}: {error}")], ""
            continue
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        captions = [
            printable(text if language is None else f"{language}: {text}")
            for language, text in flatten(example["text"], None)
        ]
        yield image, captions, line_text(example["key"])


def jpeg_of(thumbnail: Image.Image) -> bytes:
    """Gives a thumbnail as a JPEG file, for pages."""
    file = io.BytesIO()
    thumbnail.save(file, "JPEG", quality=85)
    return file.getvalue()


def _page(pairs: Iterator[tuple[Image.Image | None, list[str], str]], title: str) -> str:
    figures = []
    for image, captions, key in pairs:
        lines = "<br>".join(map(html_words, captions))
        if image is None:
            figures.append(f"<figure><p>{lines}</p></figure>")
            continue
        picture = base64.b64encode(jpeg_of(image)).decode()
        figures.append(
            f'<figure><img src="data:image/jpeg;base64,{picture}" alt="">'
            f"<figcaption>{lines}</figcaption><small>{html_words(key)}</small></figure>"
        )
    return (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{html_words(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html_words(title)}</h1><main>"
        f"{''.join(figures)}</main></body></html>\n"
    )


def _picture(pairs: Iterator[tuple[Image.Image | None, list[str], str]], title: str) -> bytes:
    font, cells = _font(), list(pairs)
    width, height = _THUMBNAIL + _GAP, _THUMBNAIL + _GAP + (_LINES + 1) * _LINE
    rows = -(-len(cells) // _COLUMNS)
    size = (_COLUMNS * width + _GAP, rows * height + 2 * _GAP + _LINE)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP // 2), wrap(title, font, size[0] - 2 * _GAP, 1)[0], "black", font)
    for number, (image, captions, key) in enumerate(cells):
        x = _GAP + number % _COLUMNS * width
        y = 2 * _GAP + _LINE + number // _COLUMNS * height
        if image is not None:
            sheet.paste(image, (x, y))
            y += _THUMBNAIL
        lines = [line for text in captions for line in wrap(text, font, _THUMBNAIL, _LINES)]
        for place, line in enumerate(lines[:_LINES]):
            draw.text((x, y + place * _LINE), line, "black", font)
        place = min(len(lines), _LINES)
        draw.text((x, y + place * _LINE), wrap(key, font, _THUMBNAIL, 1)[0], "gray", font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _font() -> _Font:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, 12)
        except OSError:
            continue
    return ImageFont.load_default(12)


def wrap(text: str, font: _Font, width: int, most: int) -> list[str]:
    """Breaks a text into lines of a width in pixels: at blanks, or inside a word that is longer."""
    rest, lines = " ".join(text.split()), list[str]()
    while rest and len(lines) < most:
        end = next((n for n in range(1, len(rest)) if font.getlength(rest[: n + 1]) > width), None)
        if end is None:
            return [*lines, rest]
        blank = rest.rfind(" ", 0, end + 1)
        end = blank if blank > 0 else end
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest and lines:
        lines[-1] = lines[-1][:-1] + "\u2026"
    return lines or [""]
