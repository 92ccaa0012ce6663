"""RandAugment: a few operations, drawn anew for each picture, all of one strength."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from clipjax.data.images.preprocess import as_pil, to_rgb
from clipjax.data.source import Example
from clipjax.ranges import Number, Ranged, Rule, count, whole

# Magnitudes of the tables that torchvision and most recipes count by; the paper's code goes to 10.
_STRONGEST = 30
_FAR = 150 / 331  # of a side, the farthest that a picture is moved
Change = Callable[[Image.Image, float, int], Image.Image]


def _moved(image: Image.Image, matrix: tuple[float, ...], fill: int) -> Image.Image:
    kind, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
    return image.transform(image.size, kind, matrix, nearest, fillcolor=(fill,) * 3)


def _enhanced(enhancer: type) -> Change:
    return lambda image, part, fill: enhancer(image).enhance(1 + 0.9 * part)


# (image, part, fill) -> image; part is the magnitude in 0..1, for `TWO_WAYS` in -1..1.
OPERATIONS: dict[str, Change] = {
    "identity": lambda image, part, fill: image,
    "shear_x": lambda image, part, fill: _moved(image, (1, 0.3 * part, 0, 0, 1, 0), fill),
    "shear_y": lambda image, part, fill: _moved(image, (1, 0, 0, 0.3 * part, 1, 0), fill),
    "translate_x": lambda image, part, fill: _moved(
        image, (1, 0, -math.trunc(_FAR * image.width * part), 0, 1, 0), fill
    ),
    "translate_y": lambda image, part, fill: _moved(
        image, (1, 0, 0, 0, 1, -math.trunc(_FAR * image.height * part)), fill
    ),
    "rotate": lambda image, part, fill: image.rotate(30 * part, fillcolor=(fill,) * 3),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": lambda image, part, fill: ImageOps.posterize(image, 8 - round(4 * part)),
    "solarize": lambda image, part, fill: ImageOps.solarize(
        image, math.ceil(round(255 * (1 - part), 6))
    ),
    "auto_contrast": lambda image, part, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, part, fill: ImageOps.equalize(image),
}
TWO_WAYS = {
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
}


@dataclasses.dataclass(frozen=True)
class RandAugment(Ranged):
    """Applies some of fourteen operations one after another, each drawn as often as another.

    Shear, translation, rotation, brightness, colour, contrast and sharpness go either way; there
    are posterize, solarize, automatic contrast, equalize, and none. Ranges are torchvision's.

    Args:
        num_ops: how many a picture.
        magnitude: the strength of all of them, of 30.
        fill: the grey value of what comes into view from outside.

    Reference: arXiv:1909.13719.
    """

    num_ops: int = 2
    magnitude: float = 9
    fill: int = 128

    ranges: ClassVar[Mapping[str, Rule]] = {
        "num_ops": count(),
        "magnitude": Number(0, _STRONGEST),
        "fill": whole(0, 255),
    }

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by u8 `[height, width, 3]`."""
        image, names = to_rgb(as_pil(example["image"])), tuple(OPERATIONS)
        for _ in range(self.num_ops):
            name = names[int(rng.integers(len(names)))]
            sign = -1 if name in TWO_WAYS and rng.random() < 0.5 else 1
            image = OPERATIONS[name](image, sign * self.magnitude / _STRONGEST, self.fill)
        return {**example, "image": np.asarray(image)}
