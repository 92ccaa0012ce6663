"""The quickstart's model on another artist's drawings: Google's Noto emoji, never trained on.

    apt-get install fonts-noto-color-emoji
    python benchmarks/quickstart_noto.py --checkpoint runs/quickstart

For each of the unseen emoji that the font draws: which of ALL unseen names is nearest?
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipjax.data.sources.emoji_drawings import MARGIN
from clipjax.data.sources.emoji_names import is_unseen
from clipjax.data.sources.openmoji import OpenMoji
from clipjax.inference import Model

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
STRIKE = 109  # the one size that the font's bitmaps have
CANVAS = 136  # pixels that one glyph takes at that size


def draw(font: ImageFont.FreeTypeFont, codepoints: str) -> Image.Image | None:
    """Draws an emoji cropped as the quickstart's own are; None where the font has no one glyph."""
    text = "".join(chr(int(code, 16)) for code in codepoints.split("-"))
    if font.getlength(text) > 1.1 * CANVAS:
        return None  # it falls apart into several glyphs: the font is older than this emoji
    canvas = Image.new("RGBA", (2 * CANVAS, 2 * CANVAS), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((CANVAS // 2, CANVAS // 2), text, font=font, embedded_color=True)
    box = canvas.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if box is None:
        return None
    side = round(max(box[2] - box[0], box[3] - box[1]) * MARGIN)
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    square = canvas.crop((left, top, left + side, top + side))
    white = Image.new("RGBA", square.size, "white")
    return Image.alpha_composite(white, square).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="runs/quickstart")
    parser.add_argument("--font", default=FONT)
    arguments = parser.parse_args()
    font = ImageFont.truetype(arguments.font, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    unseen = [pair for pair in OpenMoji.pairs() if is_unseen(pair.codepoints)]
    names = [pair.names["en"] for pair in unseen]
    drawn = [(i, draw(font, pair.codepoints)) for i, pair in enumerate(unseen)]
    labels = np.array([i for i, image in drawn if image is not None])
    encoder = Model.from_checkpoint(arguments.checkpoint)
    images = encoder.encode_image([image for _, image in drawn if image is not None])
    cosines = images @ encoder.encode_text(names).T
    rank = (cosines > cosines[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    print(f"{len(labels)} of {len(names)} unseen emoji are drawn by the font")
    print(
        f"top-1 {np.mean(rank < 1):.3f}  top-5 {np.mean(rank < 5):.3f}  chance {1 / len(names):.4f}"
    )


if __name__ == "__main__":
    main()
