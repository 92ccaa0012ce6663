"""Transforms that change colours: jitter, blur, cutout, backgrounds."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from PIL import ImageFilter

from clipjax.color_strengths import ColorStrengths
from clipjax.data.images.preprocess import as_array, as_pil, lay_on, to_rgb
from clipjax.data.source import Example
from clipjax.ranges import FRACTION, STRENGTH, Number, Ranged, Rule, Span


@dataclasses.dataclass(frozen=True)
class ColorJitter(ColorStrengths):
    """Hue, saturation, gain and offset, as one 3 x 3 matrix and one offset."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by u8 `[height, width, 3]`."""
        image = np.asarray(to_rgb(as_pil(example["image"])))
        angle = np.deg2rad(rng.uniform(-self.hue, self.hue))
        saturation = rng.uniform(*self.saturation)
        gains = (1 + rng.uniform(-self.gain, self.gain)) * (
            1 + rng.uniform(-self.channel_gain, self.channel_gain, 3)
        )
        offset = rng.uniform(-self.offset, self.offset, 3).astype(np.float32)
        grey, turn = _turn_about_grey(angle)
        matrix = (saturation * np.eye(3) + (1 - saturation) * grey) @ turn
        matrix = (np.diag(gains) @ matrix).astype(np.float32)
        out = image.reshape(-1, 3).astype(np.float32) @ matrix.T + offset
        return {**example, "image": np.clip(out, 0, 255).astype(np.uint8).reshape(image.shape)}


def _turn_about_grey(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The projection on the grey axis and the rotation about it (Rodrigues), both 3 x 3."""
    grey, root = np.full((3, 3), 1 / 3), np.sqrt(1 / 3)
    cross = np.array([[0, -root, root], [root, 0, -root], [-root, root, 0]])
    turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * grey + np.sin(angle) * cross
    return grey, turn


@dataclasses.dataclass(frozen=True)
class RandomBlur(Ranged):
    """Blurs with a Gaussian of random width.

    Args:
        probability: how often.
        radius: standard deviation, in pixels.
    """

    probability: float = 0.2
    radius: tuple[float, float] = (0.2, 0.8)

    ranges: ClassVar[Mapping[str, Rule]] = {"probability": FRACTION, "radius": Span()}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by a blurred one, or leaves it."""
        if rng.random() >= self.probability:
            return example
        blur = ImageFilter.GaussianBlur(rng.uniform(*self.radius))
        image = as_pil(example["image"])
        if image.mode == "RGBA":  # premultiplied, so that what is transparent lends no colour
            image = image.convert("RGBa").filter(blur).convert("RGBA")
        else:
            image = image.filter(blur)
        return {**example, "image": np.asarray(image)}


@dataclasses.dataclass(frozen=True)
class Cutout(Ranged):
    """Fills one random rectangle with a random colour.

    Args:
        probability: how often.
        sides: the range of the rectangle's sides, as parts of the image's shorter side.

    Reference: arXiv:1708.04552.
    """

    probability: float = 0.3
    sides: tuple[float, float] = (0.1, 0.35)

    ranges: ClassVar[Mapping[str, Rule]] = {"probability": FRACTION, "sides": Span(high=1)}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by one with a rectangle in it, or leaves it."""
        if rng.random() >= self.probability:
            return example
        out = as_array(example["image"]).copy()
        height, width = (rng.uniform(*self.sides, 2) * min(out.shape[:2])).astype(int)
        top = rng.integers(out.shape[0] - height + 1)
        left = rng.integers(out.shape[1] - width + 1)
        out[top : top + height, left : left + width, :3] = rng.integers(0, 256, 3)
        return {**example, "image": out}


@dataclasses.dataclass(frozen=True)
class RandomBackground(Ranged):
    """Lays a picture that has transparency on a ground of random colour, else on white.

    Args:
        probability: how often the ground is random instead of white.
        darkest: the darkest value of a random ground, in 0..255.
    """

    probability: float = 0.5
    darkest: float = 0.0

    ranges: ClassVar[Mapping[str, Rule]] = {"probability": FRACTION, "darkest": Number(0, 255)}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by u8 `[height, width, 3]`."""
        colour = (255, 255, 255)
        if rng.random() < self.probability:
            red, green, blue = (int(c) for c in rng.uniform(self.darkest, 256, 3))
            colour = (red, green, blue)
        return {**example, "image": np.asarray(lay_on(as_pil(example["image"]), colour))}


@dataclasses.dataclass(frozen=True)
class ComposeLayers(Ranged):
    """Lays the fill and the lines of a drawing on a ground, restyling each.

    The image is a sheet u8 `[2 * side, side, 4]`: the drawing without its lines above its lines
    alone, as `openmoji:train?layers=true` gives it. Shaded fills, faded or coloured lines and
    coloured grounds keep a model from learning one artist's line and palette.

    Args:
        background: probability of a random ground instead of white.
        fade: probability that lines are made fainter and coloured.
        min_opacity: the opacity of the faintest lines.
        shade: strength of the linear light-to-dark shading of the fill.
        shade_probability: how often the fill is shaded.
    """

    background: float = 0.5
    fade: float = 0.6
    min_opacity: float = 0.1
    shade: float = 0.25
    shade_probability: float = 0.5

    ranges: ClassVar[Mapping[str, Rule]] = {
        "background": FRACTION,
        "fade": FRACTION,
        "min_opacity": FRACTION,
        "shade": STRENGTH,
        "shade_probability": FRACTION,
    }

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the sheet by u8 `[side, side, 3]`."""
        sheet = example["image"]
        if not isinstance(sheet, np.ndarray) or sheet.shape != (
            2 * sheet.shape[1],
            sheet.shape[1],
            4,
        ):
            raise ValueError(
                f"compose_layers found an image of shape {getattr(sheet, 'shape', type(sheet))}, "
                "expected a sheet [2 * side, side, 4]: use the source openmoji:train?layers=true"
            )
        side = sheet.shape[1]
        fill, line = sheet[:side].astype(np.float32), sheet[side:].astype(np.float32)
        ground = self._ground(rng)
        color, alpha = self._shade(fill[..., :3], side, rng), fill[..., 3:] / np.float32(255)
        out = ground + (color - ground) * alpha
        color, alpha = line[..., :3], line[..., 3:] / np.float32(255)
        if rng.random() < self.fade:
            alpha = alpha * np.float32(rng.uniform(self.min_opacity, 1))
            tint = rng.uniform(0, 110, 3).astype(np.float32) * np.float32(rng.random())
            color = np.maximum(color, tint)
            if rng.random() < 0.5:  # lines in a darker shade of what they outline
                color = np.maximum(color, out * np.float32(rng.uniform(0.2, 0.8)))
        out = out + (color - out) * alpha
        return {**example, "image": np.clip(out, 0, 255).astype(np.uint8)}

    def _ground(self, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.background:
            return np.full(3, 255, np.float32)
        if rng.random() < 0.5:
            return rng.uniform(0, 255, 3).astype(np.float32)
        return np.full(3, rng.uniform(60, 255), np.float32)

    def _shade(self, fill: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.shade_probability:
            return fill
        x, y = _ramps(side)
        a, b = rng.uniform(-self.shade, self.shade, 2).astype(np.float32)
        return fill * (1 + a * x + b * y)


@functools.lru_cache(maxsize=8)
def _ramps(side: int) -> tuple[np.ndarray, np.ndarray]:
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    return ramp[None, :, None], ramp[:, None, None]
