"""Transforms that change colours: jitter, grayscale, blur, cutout, backgrounds."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from PIL import ImageFilter

from clipjax.color_strengths import ColorStrengths
from clipjax.data.images.preprocess import as_array, as_pil, lay_on, to_rgb
from clipjax.data.source import Example
from clipjax.ranges import FRACTION, Number, Ranged, Rule, Span


@dataclasses.dataclass(frozen=True)
class ColorJitter(ColorStrengths):
    """Hue, saturation, gain, offset and contrast, as one 3 x 3 matrix and one offset."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by u8 `[height, width, 3]`, or leaves it."""
        if self.probability < 1 and rng.random() >= self.probability:
            return example
        image = np.asarray(to_rgb(as_pil(example["image"])))
        angle = np.deg2rad(rng.uniform(-self.hue, self.hue))
        saturation = rng.uniform(*self.saturation)
        gains = (1 + rng.uniform(-self.gain, self.gain)) * (
            1 + rng.uniform(-self.channel_gain, self.channel_gain, 3)
        )
        offset = rng.uniform(-self.offset, self.offset, 3).astype(np.float32)
        grey, turn = turn_about_grey(angle)
        matrix = (saturation * np.eye(3) + (1 - saturation) * grey) @ turn
        matrix = (np.diag(gains) @ matrix).astype(np.float32)
        if self.contrast:
            factor = np.float32(1 + rng.uniform(-self.contrast, self.contrast))
            means = image.reshape(-1, 3).mean(0)  # of integers, so in float64: millions are summed
            levels = (matrix @ means + offset).astype(np.float32)
            matrix, offset = factor * matrix, factor * offset + (1 - factor) * levels
        out = image.reshape(-1, 3).astype(np.float32) @ matrix.T + offset
        return {**example, "image": np.clip(out, 0, 255).astype(np.uint8).reshape(image.shape)}


def turn_about_grey(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The projection on the grey axis and the rotation about it (Rodrigues), both 3 x 3."""
    grey, root = np.full((3, 3), 1 / 3), np.sqrt(1 / 3)
    cross = np.array([[0, -root, root], [root, 0, -root], [-root, root, 0]])
    turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * grey + np.sin(angle) * cross
    return grey, turn


@dataclasses.dataclass(frozen=True)
class RandomGrayscale(Ranged):
    """Takes the colour of a picture and leaves its luma (ITU-R BT.601), as Pillow's mode L does.

    Args:
        probability: how often.
    """

    probability: float = 0.2

    ranges: ClassVar[Mapping[str, Rule]] = {"probability": FRACTION}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by a grey one of as many channels, or leaves it."""
        if rng.random() >= self.probability:
            return example
        image = as_pil(example["image"])
        grey = image.convert("LA" if image.mode == "RGBA" else "L").convert(image.mode)
        return {**example, "image": np.asarray(grey)}


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
