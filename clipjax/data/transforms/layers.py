"""Transforms of a drawing that comes in layers: fill and lines, restyled one by one."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from clipjax.data.source import Example
from clipjax.data.transforms.captions import matches_any
from clipjax.data.transforms.color import turn_about_grey
from clipjax.ranges import FRACTION, PATTERNS, STRENGTH, Ranged, Rule


@dataclasses.dataclass(frozen=True)
class ComposeLayers(Ranged):
    """Lays the fill and the lines of a drawing on a ground, restyling each.

    The image is a sheet u8 `[2 * side, side, 4]`: the drawing without its lines above its lines
    alone, as `openmoji:train?layers=true` gives it, and `twemoji`, whose lines are empty; with
    `areas=true` its areas stand below. Shaded fills, faded or coloured lines and coloured grounds
    keep a model from learning one artist's line and palette.

    Args:
        background: probability of a random ground instead of white.
        fade: probability that lines are made fainter and coloured.
        min_opacity: the opacity of the faintest lines.
        shade: strength of the linear light-to-dark shading of the fill.
        shade_probability: how often the fill is shaded.
        paint: how often areas that lines enclose and nothing fills are painted; needs `areas`.
        no_outline: how often the lines around a drawing are left out, while those inside stay, as
            eyes do; needs `areas`. Drawings that are more line than fill keep them.
        cool_hue: largest turn of fills that are more blue than red, such as clothes, about the
            grey axis, in degrees. Skin is none of them.
        hair: how often hair has another colour, from black to white, brown or blond; needs `areas`.
        keep_hair: regular expressions; where one is found in the caption, hair keeps its colour.
    """

    background: float = 0.5
    fade: float = 0.6
    min_opacity: float = 0.1
    shade: float = 0.25
    shade_probability: float = 0.5
    paint: float = 0.0
    no_outline: float = 0.0
    cool_hue: float = 0.0
    hair: float = 0.0
    keep_hair: tuple[str, ...] = (r"\bhair\b",)

    ranges: ClassVar[Mapping[str, Rule]] = {
        "background": FRACTION,
        "fade": FRACTION,
        "min_opacity": FRACTION,
        "shade": STRENGTH,
        "shade_probability": FRACTION,
        "paint": FRACTION,
        "no_outline": FRACTION,
        "cool_hue": STRENGTH,
        "hair": FRACTION,
        "keep_hair": PATTERNS,
    }

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Replaces the sheet by u8 `[side, side, 3]`."""
        sheet: Any = example["image"]
        parts = 3 if self.paint or self.no_outline or self.hair else 2
        shape = getattr(sheet, "shape", type(sheet))
        side = sheet.shape[1] if isinstance(sheet, np.ndarray) and sheet.ndim == 3 else 0
        if shape not in ((parts * side, side, 4), (3 * side, side, 4)):
            raise ValueError(
                f"compose_layers found an image of shape {shape}, expected a sheet "
                f"[{parts} * side, side, 4]: use the source openmoji:train?layers=true"
                f"{'&areas=true, for paint, no_outline and hair' * (parts == 3)}"
            )
        fill, line = sheet[:side].astype(np.float32), sheet[side : 2 * side].astype(np.float32)
        areas = sheet[2 * side :]
        # A strength of 0 draws nothing, so that a recipe without it keeps its pictures.
        if self.cool_hue:
            _turn_cool(fill, np.deg2rad(rng.uniform(-self.cool_hue, self.cool_hue)))
        if self.hair and rng.random() < self.hair:
            spared = matches_any(example["text"], self.keep_hair)
            _dye(fill, areas[..., 2] > 0, rng, spared=spared)
        if self.paint and rng.random() < self.paint:
            _paint(fill, areas[..., 0], rng)
        if self.no_outline and rng.random() < self.no_outline:
            filled, lined = fill[..., 3] >= 128, line[..., 3] >= 128
            if filled.sum() >= (lined & ~filled).sum():  # else nothing would tell what it is
                line[..., 3] *= areas[..., 1] == 0
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


def _turn_cool(fill: np.ndarray, angle: float) -> None:
    """Turns the hue of what is more blue than red."""
    cool = fill[..., 2] > fill[..., 0] + 8
    turn = turn_about_grey(angle)[1].astype(np.float32)
    fill[cool, :3] = np.clip(fill[cool, :3] @ turn.T, 0, 255)


def _dye(fill: np.ndarray, hair: np.ndarray, rng: np.random.Generator, *, spared: bool) -> None:
    """Gives hair one colour: a lightness, more or less warm."""
    lightness, warmth = rng.uniform(0, 1, 2).astype(np.float32)
    if not spared and hair.any():
        fill[hair, :3] = 240 * lightness * (1 - warmth * np.array([0, 0.35, 0.75], np.float32))


def _paint(fill: np.ndarray, holes: np.ndarray, rng: np.random.Generator) -> None:
    """Paints three of four holes: half of the time in one colour, else each in its own."""
    colors = rng.uniform(30, 255, (256, 4)).astype(np.float32)
    if rng.random() < 0.5:
        colors[:] = colors[0]
    colors[:, 3] = 255
    painted = rng.random(256) < 0.75
    painted[0] = False
    new = painted[holes]
    fill[new] = colors[holes[new]]


@functools.lru_cache(maxsize=8)
def _ramps(side: int) -> tuple[np.ndarray, np.ndarray]:
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    return ramp[None, :, None], ramp[:, None, None]
