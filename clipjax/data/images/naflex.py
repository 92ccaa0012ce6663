"""Images of any aspect as patches: an aspect-keeping resize to a budget of patches (NaFlex)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from clipjax.array_types import Patches
from clipjax.data.images.preprocess import (
    INTERPOLATIONS,
    PIXELS,
    Preprocess,
    check_interpolation,
)
from clipjax.ranges import FieldError

# The published rule searches the scale in this interval, to this width.
_SCALES = (1e-6, 100.0)
_TOLERANCE = 1e-5


@functools.lru_cache(maxsize=4096)
def patch_grid(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Finds the rows and columns of patches of an image: as many as the budget allows.

    The largest scale s for which ceil(s height / patch) * ceil(s width / patch) patches fit the
    budget, found by bisection: where grids lie close together, its width decides as published.

    Returns:
        (rows, columns), each at least 1.

    Reference: arXiv:2502.14786, section 2.4.2.
    """

    def patches(side: int, scale: float) -> int:
        return max(1, math.ceil(side * scale / patch_size))

    low, high = _SCALES
    while high - low >= _TOLERANCE:
        middle = (low + high) / 2
        if patches(height, middle) * patches(width, middle) <= max_patches:
            low = middle
        else:
            high = middle
    return patches(height, low), patches(width, low)


@dataclasses.dataclass(frozen=True)
class PatchPreprocess:
    """Resizes an image to whole patches within a budget, its aspect kept but for rounding.

    Normalisation happens on the device.
    """

    patch_size: int
    max_patches: int
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for field in ("patch_size", "max_patches"):
            value = getattr(self, field)
            if not isinstance(value, int | np.integer) or value < 1:
                raise FieldError(f"preprocess.{field} is {value!r}, at least 1 (whole) is allowed")
        check_interpolation(self.interpolation)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "PatchPreprocess":
        """Builds the preprocessing of a model whose images may have any aspect."""
        known = {"resize", "interpolation", "max_patches", "mean", "std"}
        fields = spec["preprocess"]
        for name in fields.keys() ^ known:
            raise FieldError(
                f"preprocess.{name} is {'not known' if name in fields else 'missing'}; with resize "
                f"'patches' it has the fields {', '.join(sorted(known))}"
            )
        if spec["image"]["name"] != "naflex_vit":
            raise FieldError(
                f"preprocess.resize is 'patches', the image tower {spec['image']['name']!r} takes "
                "images of one size; set 'shortest' or 'squash'"
            )
        patch_size = spec["image"]["patch_size"]
        return cls(patch_size, fields["max_patches"], fields["interpolation"])

    def __call__(self, image: bytes | np.ndarray | Image.Image) -> Patches:
        """Brings an image to Patches of u8 `[max_patches, patch_size^2 * 3]`, zeros at the end."""
        image, size = PIXELS["clipjax"](image), self.patch_size
        rows, columns = patch_grid(image.height, image.width, size, self.max_patches)
        pixels = np.asarray(
            image.resize((columns * size, rows * size), INTERPOLATIONS[self.interpolation])
        )
        pixels = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
        result = self.blank()
        result.pixels[: rows * columns] = pixels.reshape(rows * columns, -1)
        return result._replace(grid=np.array([rows, columns], np.int32))

    def blank(self) -> Patches:
        """Patches that hold no image: one black patch, the rest padding."""
        pixels = np.zeros((self.max_patches, self.patch_size**2 * 3), np.uint8)
        return Patches(pixels, np.ones(2, np.int32))


def to_image(image: np.ndarray | Patches) -> np.ndarray:
    """Gives the picture that one image is for the model: u8 `[height, width, 3]`."""
    if not isinstance(image, Patches):
        return image
    rows, columns = (int(number) for number in image.grid)
    size = math.isqrt(image.pixels.shape[-1] // 3)
    pixels = image.pixels[: rows * columns].reshape(rows, columns, size, size, 3)
    return pixels.swapaxes(1, 2).reshape(rows * size, columns * size, 3)


def make_preprocess(
    spec: Mapping[str, Any], pixels: str = "clipjax"
) -> Preprocess | PatchPreprocess:
    """Builds the published evaluation path of a model.

    Raises:
        ValueError: a field of `preprocess` that is missing or not allowed, or pixels of open_clip
            for a model of any aspect.
    """
    if spec["preprocess"].get("resize") != "patches":
        return Preprocess.from_spec(spec, pixels)
    if pixels != "clipjax":
        raise ValueError(
            f"the model takes images of any aspect as patches, of which there are no pixels of "
            f"{pixels!r}: leave preprocess= out"
        )
    return PatchPreprocess.from_spec(spec)
