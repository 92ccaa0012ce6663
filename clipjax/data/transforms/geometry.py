"""Transforms that move pixels: crops, flips, warps."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from clipjax.data.images.limits import Box
from clipjax.data.images.preprocess import INTERPOLATIONS, Preprocess, as_array, as_pil, to_rgb
from clipjax.data.source import Example
from clipjax.data.transforms.captions import matches_any
from clipjax.ranges import (
    FRACTION,
    IMAGE_SIZE,
    PATTERNS,
    STRENGTH,
    Choice,
    FieldError,
    Ranged,
    Rule,
    Span,
    count,
)

_INTERPOLATION = Choice(tuple(INTERPOLATIONS))
_DECODE = Choice(("reference", "fast"))


class _Decoding(Ranged):
    """A transform whose field `decode` says by what JPEGs are decoded."""

    decode: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decode == "fast":
            import clipjax.data.images.fast_jpeg  # noqa: F401  its libraries are there, or not, before step 0

    def fast_jpeg(self, example: Example) -> Any:
        """The example's image as a FastJpeg; None where the reference path has to take it."""
        if self.decode != "fast":
            return None
        from clipjax.data.images.fast_jpeg import FastJpeg  # on demand: it needs the extra [fast]

        return FastJpeg.open(example["image"])


@dataclasses.dataclass(frozen=True)
class ResizeAndCrop(_Decoding):
    """The evaluation's resize and centre crop, without any randomness.

    Args:
        image_size: side of the result, in pixels.
        resize: `shortest` or `squash`.
        interpolation: `bicubic` or `bilinear`.
        decode: `reference`, or `fast` for JPEGs by `clipjax.data.images.fast_jpeg`; other
            formats, and `interpolation`, are the reference's.
    """

    image_size: int
    resize: str = "shortest"
    interpolation: str = "bicubic"
    decode: str = "reference"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "image_size": IMAGE_SIZE,
        "resize": Choice(("shortest", "squash")),
        "interpolation": _INTERPOLATION,
        "decode": _DECODE,
    }

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by u8 `[image_size, image_size, 3]`."""
        jpeg = self.fast_jpeg(example)
        if jpeg is not None:
            box: Box = (0, 0, jpeg.width, jpeg.height)
            if self.resize == "shortest":
                box = _centre(jpeg.width, jpeg.height, self.image_size)
            pixels = jpeg.crop(box, self.image_size)
            if pixels is not None:
                return {**example, "image": pixels}
        preprocess = Preprocess(self.image_size, self.resize, self.interpolation)
        return {**example, "image": preprocess(example["image"])}


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(_Decoding):
    """Cuts a random part and resizes it, antialiased.

    Args:
        image_size: side of the result, in pixels.
        scale: range of the part's area in the image's. (0.9, 1.0) is CLIP's; (0.4, 1.0) is common
            for small data.
        ratio: the range of the ratio of width to height, drawn log-uniformly.
        interpolation: `bicubic` or `bilinear`.
        decode: `reference`, or `fast` as for ResizeAndCrop; the part is the same for both.

    Reference: arXiv:1409.4842, section 6.
    """

    image_size: int
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    decode: str = "reference"

    ranges: ClassVar[Mapping[str, Rule]] = {
        "image_size": IMAGE_SIZE,
        "scale": Span(high=1),
        "ratio": Span(low=1e-3),
        "interpolation": _INTERPOLATION,
        "decode": _DECODE,
    }

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by u8 `[image_size, image_size, 3]`."""
        jpeg, box = self.fast_jpeg(example), None
        if jpeg is not None:
            box = self.box(jpeg.width, jpeg.height, rng)
            pixels = jpeg.crop(box, self.image_size)
            if pixels is not None:
                return {**example, "image": pixels}
        image = to_rgb(as_pil(example["image"]))
        kernel = INTERPOLATIONS[self.interpolation]
        box = box or self.box(*image.size, rng)  # drawn once: the same part for both decoders
        return {
            **example,
            "image": np.asarray(image.resize((self.image_size,) * 2, kernel, box=box)),
        }

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Draws a part of an image: left, top, right, bottom."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = np.exp(rng.uniform(*np.log(self.ratio)))
            w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
                return int(left), int(top), int(left + w), int(top + h)
        # No part of that shape fits a very long image: the nearest allowed ratio, centred.
        ratio = np.clip(width / height, *self.ratio)
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        w, h = max(w, 1), max(h, 1)
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


def _centre(width: int, height: int, size: int) -> Box:
    """The part that `resize_and_crop` keeps, which is not in the middle to a pixel."""
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    offset = round((scaled - size) / 2)
    start, stop = offset * long / scaled, (offset + size) * long / scaled
    return (start, 0, stop, height) if width > height else (0, start, width, stop)


@dataclasses.dataclass(frozen=True)
class RandomFlip(Ranged):
    """Mirrors left and right.

    Args:
        probability: how often.
        unless: regular expressions; an image with a caption in which one is found is left as it is,
            such as `left` and `right`.
    """

    probability: float = 0.5
    unless: tuple[str, ...] = ()

    ranges: ClassVar[Mapping[str, Rule]] = {"probability": FRACTION, "unless": PATTERNS}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by its mirror image, or leaves it."""
        if rng.random() >= self.probability:
            return example
        if self.unless and matches_any(example["text"], self.unless):
            return example
        return {**example, "image": as_array(example["image"])[:, ::-1]}


@dataclasses.dataclass(frozen=True)
class Warp(Ranged):
    """One resampling that rotates, scales, shears, shifts and bends a square picture.

    What comes into view from outside takes the colour of the top left pixel.

    Args:
        image_size: side of the result, in pixels.
        rotate: largest angle either way, in degrees.
        scale: the range of the picture's size within the frame.
        aspect: largest log of the ratio of the sides, either way.
        shear: largest shear, either way.
        shift: largest shift, as a part of the frame.
        bend: standard deviation of a mesh point, as a part of the frame.
        cells: mesh cells a side.
    """

    image_size: int
    rotate: float = 15.0
    scale: tuple[float, float] = (0.75, 1.1)
    aspect: float = 0.15
    shear: float = 0.15
    shift: float = 0.08
    bend: float = 0.05
    cells: int = 3

    ranges: ClassVar[Mapping[str, Rule]] = {
        "image_size": IMAGE_SIZE,
        "rotate": STRENGTH,
        "scale": Span(low=1e-3),
        "aspect": STRENGTH,
        "shear": STRENGTH,
        "shift": STRENGTH,
        "bend": STRENGTH,
        "cells": count(),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells > self.image_size:
            raise FieldError(
                f"cells = {self.cells}: expected at most image_size = {self.image_size}: a cell is "
                "a pixel or more"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the image by u8 `[image_size, image_size, 3]`."""
        image = to_rgb(as_pil(example["image"]))
        edges = np.round(np.linspace(0, self.image_size, self.cells + 1)).astype(int).tolist()
        points = (self._points(edges, rng) + 0.5) * image.size
        mesh = []
        for i in range(self.cells):
            for j in range(self.cells):
                corners = (points[i, j], points[i + 1, j], points[i + 1, j + 1], points[i, j + 1])
                box = (edges[j], edges[i], edges[j + 1], edges[i + 1])
                mesh.append((box, tuple(float(x) for corner in corners for x in corner)))
        warped = image.transform(
            (self.image_size, self.image_size),
            Image.Transform.MESH,
            mesh,
            Image.Resampling.BILINEAR,
            fillcolor=image.getpixel((0, 0)),
        )
        return {**example, "image": np.asarray(warped)}

    def _points(self, edges: list[int], rng: np.random.Generator) -> np.ndarray:
        """Where each mesh point `[row, column]` is taken from, (x, y) in -0.5..0.5."""
        angle = np.deg2rad(rng.uniform(-self.rotate, self.rotate))
        scale = np.exp(rng.uniform(*np.log(self.scale)))
        stretch = np.exp(rng.uniform(-self.aspect, self.aspect) / 2)
        shear = rng.uniform(-self.shear, self.shear)
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, shear], [0, 1]])
        matrix = matrix @ np.diag([1 / (scale * stretch), stretch / scale])
        ticks = np.array(edges) / self.image_size - 0.5
        points = np.stack(np.meshgrid(ticks, ticks), axis=-1)
        points = (points + rng.uniform(-self.shift, self.shift, 2)) @ matrix.T
        return points + rng.normal(0, self.bend, points.shape)
