"""Drawn on demand: coloured shapes with captions, for smoke runs and tests."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from clipjax.data.source import Example
from clipjax.files import sha256

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 60, 170),
    "orange": (240, 140, 30),
    "black": (20, 20, 20),
    "grey": (140, 140, 140),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES = {"small": 0.2, "large": 0.38}
VERSION = 1


class Synthetic:
    """N pictures of a coloured shape on white, each with its caption.

    Example `i` depends on `i` alone: its class is `i` modulo the number of classes (every pair
    of a colour and a shape), its size and place come from the hash of `i`.

    Args:
        where: how many examples, as text: `synthetic:1000`.
    """

    class_names = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

    def __init__(self, where: str = "1000", *, side: int = 64):
        if not where.isdecimal() or int(where) < 1:
            raise ValueError(f"synthetic:{where} is no number of examples, e.g. synthetic:1000")
        if side < 1:
            raise ValueError(f"synthetic has side={side}: pixels of a picture, at least 1")
        self._size, self._side = int(where), side

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._size:
            raise IndexError(f"example {index} of {self._size}")
        label = index % len(self.class_names)
        rng = np.random.Generator(np.random.Philox(key=[VERSION, index]))
        size = list(SIZES)[int(rng.integers(len(SIZES)))]
        radius = SIZES[size] * self._side
        x, y = rng.uniform(radius, self._side - radius, 2)
        colour, shape = self.class_names[label].split()
        image = Image.new("RGB", (self._side, self._side), "white")
        _draw(ImageDraw.Draw(image), shape, COLOURS[colour], x, y, radius)
        return {
            "image": np.asarray(image),
            "text": f"a {size} {colour} {shape}",
            "key": f"synthetic-{index}",
            "label": label,
        }

    def fingerprint(self) -> str:
        """SHA-256 of number, size and version of the drawings."""
        identity = f"synthetic/{VERSION}/{self._size}/{self._side}"
        return sha256(identity)


def _draw(draw: ImageDraw.ImageDraw, shape: str, colour: Any, x: float, y: float, r: float) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    elif shape == "diamond":
        draw.polygon([(x, y - r), (x - r, y), (x, y + r), (x + r, y)], fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=max(1, int(r / 3)))
    else:
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
        draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)
