"""Images, correct first: decoding by one table of modes, and the published evaluation path."""

import dataclasses
import io
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageFile

from clipjax.data.images.formats import FORMATS, format_of, is_readable, other_format_of
from clipjax.data.images.limits import (
    ImageError,
    check_opened,
    check_pixels,
    check_scans,
    check_white,
    pixel_limit,
)
from clipjax.data.images.parts import check_parts
from clipjax.ranges import FieldError

# Of an image that is resized before it is cropped: sides of 1 : 300 at 224 pixels.
MAX_RESIZED_PIXELS = 1 << 24
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
# Where Pillow's `info` holds it.
_ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# Bits a channel of PNGs whose pixels Pillow brings to 8 bits, and whose colour key it leaves.
_KEY_BITS = {"L;2": 2, "L;4": 4, "RGB;16B": 16}


def decode_image(data: bytes, *, converted: bool = False) -> Image.Image:
    """Decodes an image to RGB or, where it has transparency, RGBA.

    The header is checked before any pixel is decoded: what it may cost is told by
    `clipjax.data.images.limits`. 16-bit channels keep their high byte,
    palettes and CMYK are converted, the orientation in EXIF, or else in XMP, is applied, an
    animation gives its first frame, colour profiles are ignored as in the published preprocessing.
    The inks of a CMYK JPEG are taken as inverted, with Adobe's marker or without it, as browsers
    and Pillow do.

    Args:
        converted: give what Pillow's `convert("RGB")` alone makes of it.

    Raises:
        ImageError: if it is unusable; `.reason` tells why.
    """
    name = _readable_format(data)
    try:
        check_parts(name, data)
        # An ImageFile, then what is made of it: of large pictures, at most two copies are held.
        image: Any = Image.open(io.BytesIO(data), formats=(name,))
        check_pixels(image.width, image.height, pixel_limit(image))
        check_opened(image)
        if name == "JPEG":
            check_scans(data, image.width * image.height)
        if converted:
            image.load()
            if isinstance(image.info.get("transparency"), bytes):
                del image.info["transparency"]  # of a palette: Pillow drops it with a warning
            return image.convert("RGB")
        _bring_key_to_8_bits(image)
        return _upright(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image_pixels", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            "image_format", f"the header of the {name} image is damaged, or of a kind not read"
        ) from error
    except Exception as error:
        # Decoders meet hostile bytes here and raise a dozen unrelated types for them.
        why = f": {error}" if str(error) else ""
        raise ImageError("image_undecodable", f"the {name} image does not decode{why}") from error


def _readable_format(data: bytes) -> str:
    """Names the format of an encoded picture; ImageError if it is none that can be read here."""
    if not data:
        raise ImageError("image_empty", "the image has 0 bytes")
    form = format_of(data)
    if form is not None and is_readable(form):
        return form.name
    known = ", ".join(form.name for form in FORMATS)
    if form is not None:
        raise ImageError(
            "image_no_decoder",
            f"the image is {form.name}, which Pillow {PIL.__version__} as installed here does not "
            "read: `pip install -U pillow`, or convert it",
        )
    if (other := other_format_of(data)) is not None:
        raise ImageError("image_no_decoder", f"the image is {other}: convert it to one of {known}")
    raise ImageError("image_format", f"the image is none of {known}: it begins with {data[:8]!r}")


def decode_as_open_clip(image: bytes | np.ndarray | Image.Image) -> Image.Image:
    """Brings an image to RGB as open_clip and torchvision have it: by Pillow's `convert` alone.

    So that numbers can be compared: orientations stay as stored, transparency is dropped and what
    lies below it shows, channels of 16 bits are cut at 255.

    Raises:
        ImageError: if it is unusable; `.reason` tells why.
    """
    if isinstance(image, bytes):
        return decode_image(image, converted=True)
    return _given(image).convert("RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """Lays an RGBA image on white; an RGB image is returned as it is."""
    return lay_on(image, (255, 255, 255))


def lay_on(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Lays an RGBA image on a ground of that colour; an RGB image is returned as it is."""
    if image.mode == "RGB":
        return image
    ground = Image.new("RGB", image.size, colour)
    ground.paste(image, mask=image)  # pixels of alpha_composite, half its memory
    return ground


def as_pil(image: bytes | np.ndarray | Image.Image) -> Image.Image:
    """Gives encoded bytes, a u8 array `[height, width, 3 or 4]` or an image as RGB or RGBA.

    A Pillow image is turned as `decode_image` turns its file.
    """
    if isinstance(image, bytes):
        return decode_image(image)
    given = _given(image)
    if given is image:
        check_white(given)
        return _upright(given)
    return given


def _given(image: np.ndarray | Image.Image) -> Image.Image:
    """Gives an array as a Pillow image, which itself is left as it is; refuses what is neither."""
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or channels not in (3, 4) or not image.size:
            raise ImageError(
                "image_shape",
                f"the image is {image.dtype}{list(image.shape)}, expected uint8 [h, w, 3 or 4]: of "
                "x in 0..1 give (255 * x).astype(np.uint8), of grey [h, w] np.stack([x] * 3, -1), "
                "of channels that come first x.transpose(1, 2, 0)",
            )
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"an image is {type(image).__name__}, expected bytes, a uint8 NumPy array (of another "
            "library's array np.asarray(x)) or a Pillow image"
        )
    if 0 in image.size:
        raise ImageError("image_shape", f"the image has {image.width} x {image.height} pixels")
    return image


def as_array(image: bytes | np.ndarray | Image.Image) -> np.ndarray:
    """Gives encoded bytes, an array or an image as u8 `[height, width, 3 or 4]`."""
    return image if isinstance(image, np.ndarray) else np.asarray(as_pil(image))


# Whose decoding -> (bytes | array | image) -> RGB.
PIXELS = {"clipjax": lambda image: to_rgb(as_pil(image)), "open_clip": decode_as_open_clip}


def check_interpolation(name: Any) -> None:
    """Refuses what is no key of INTERPOLATIONS."""
    if name not in tuple(INTERPOLATIONS):  # also what has no hash
        raise FieldError(
            f"preprocess.interpolation is {name!r}; allowed are {', '.join(sorted(INTERPOLATIONS))}"
        )


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The published evaluation path: resize with antialiasing, centre crop, uint8 RGB.

    With `n = round(size / crop_fraction)`: `shortest` resizes the shorter side to `n` (the longer
    one rounded down), `squash` resizes both to `n`; then the centre `[size, size]` is cropped at
    the offset `round((side - size) / 2)`, halves to even. transformers rounds that offset down, so
    it is another one where the side is longer than `size` by 3, 7, 11, ... pixels.
    Normalisation happens on the device.

    Args:
        size: side of the result, in pixels.
        resize: `shortest` or `squash`.
        interpolation: `bicubic` or `bilinear`, both antialiased.
        crop_fraction: the fraction of the resized side that is kept, e.g. 0.875; in (0, 1].
        pixels: whose decoding, of PIXELS: `clipjax`, or `open_clip`, to compare numbers with it.

    Reference: arXiv:2103.00020; https://github.com/openai/CLIP, clip/clip.py.
    """

    size: int
    resize: str = "shortest"
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0
    pixels: str = "clipjax"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int | np.integer) or self.size < 1:
            raise FieldError(
                f"preprocess.size is {self.size!r}, expected a whole number of at least 1 pixel"
            )
        if self.resize not in ("shortest", "squash"):
            raise FieldError(
                f"preprocess.resize is {self.resize!r}; allowed are 'shortest', 'squash' (and "
                "'patches' in a Model: here images have one size)"
            )
        check_interpolation(self.interpolation)
        if not isinstance(self.crop_fraction, int | float) or not 0 < self.crop_fraction <= 1:
            raise FieldError(
                f"preprocess.crop_fraction is {self.crop_fraction!r}; allowed is what is above 0 "
                "and at most 1"
            )
        if self.pixels not in PIXELS:
            raise ValueError(
                f"the pixels are to be those of {self.pixels!r}; allowed are {', '.join(PIXELS)}"
            )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], pixels: str = "clipjax") -> "Preprocess":
        """Builds the preprocessing of a model.

        Args:
            spec: the model's spec: `image_size`, and `preprocess` with the fields of this class,
                whose `mean` and `std` are for the device.
        """
        # A budget of patches, which models of any aspect have, is of no use for one size.
        others = ("mean", "std", "max_patches")
        fields = {k: v for k, v in spec["preprocess"].items() if k not in others}
        known = {field.name for field in dataclasses.fields(cls)} - {"size", "pixels"}
        for name in fields.keys() - known:
            raise FieldError(
                f"preprocess.{name} is not known; allowed are mean, std, {', '.join(sorted(known))}"
            )
        for name in {"resize", "interpolation"} - fields.keys():
            raise FieldError(f"preprocess has no {name}; it is part of a model's spec")
        return cls(spec["image_size"], pixels=pixels, **fields)

    def blank(self) -> np.ndarray:
        """A result that holds no image."""
        return np.zeros((self.size, self.size, 3), np.uint8)

    def __call__(self, image: bytes | np.ndarray | Image.Image) -> np.ndarray:
        """Brings an image to u8 `[size, size, 3]`."""
        image = PIXELS[self.pixels](image)
        kernel = INTERPOLATIONS[self.interpolation]
        resized = round(self.size / self.crop_fraction)
        if self.resize == "squash":
            image = crop_centre(image.resize((resized, resized), kernel), self.size)
        else:
            image = resize_and_crop(image, resized, kernel, crop=self.size)
        return np.asarray(image)


def crop_centre(image: Image.Image, size: int) -> Image.Image:
    """Crops the centre square, at offsets rounded to even."""
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def resize_and_crop(
    image: Image.Image, size: int, kernel: Image.Resampling, *, crop: int | None = None
) -> Image.Image:
    """Resizes the shorter side to `size` and crops the centre square of `crop`, or `size`."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    if size * scaled > MAX_RESIZED_PIXELS:
        image = _middle_of_strip(image, size, scaled, kernel)
    else:
        new_size = (size, scaled) if width <= height else (scaled, size)
        image = image if new_size == image.size else image.resize(new_size, kernel)
    return crop_centre(image, crop or size)


def _middle_of_strip(
    image: Image.Image, size: int, scaled: int, kernel: Image.Resampling
) -> Image.Image:
    """The centre square of a strip resized to `[size, scaled]`, which would be a gigabyte.

    Its pixels come from the middle of the strip, with as much beside it as the kernel reaches.
    Rows before columns, as Pillow does it where a strip grows.
    """
    short, long = min(image.size), max(image.size)
    offset = round((scaled - size) / 2)
    start, stop = offset * long / scaled, (offset + size) * long / scaled
    reach = 2 * max(1, math.ceil(short / size)) + 1
    first, last = max(0, math.floor(start) - reach), min(long, math.ceil(stop) + reach)
    start, stop = start - first, stop - first
    if image.width > image.height:
        image = image.crop((first, 0, last, short))
        image = image.resize((size, short), kernel, box=(start, 0, stop, short))
        return image.resize((size, size), kernel)
    image = image.crop((0, first, short, last)).resize((size, last - first), kernel)
    return image.resize((size, size), kernel, box=(0, start, size, stop))


def _upright(image: Image.Image) -> Image.Image:
    """Brings a picture to RGB or RGBA, turned as its EXIF or XMP block says."""
    image.load()
    turn = turn_of(image)
    image = _to_rgb_or_rgba(image)
    if turn is None:
        return image
    image = image.transpose(turn)
    for name in _ORIENTED:
        image.info.pop(name, None)  # lest it is turned again
    return image


def _to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("RGB", "RGBA") and "transparency" not in image.info:
        return image
    if mode.startswith("I"):
        return from_16_bits(image)
    transparent = image.has_transparency_data
    if mode in ("La", "RGBa"):
        image = image.convert(mode.replace("a", "A"))
    return image.convert("RGBA" if transparent else "RGB")


def _bring_key_to_8_bits(image: ImageFile.ImageFile) -> None:
    """Brings the colour key of a PNG that is not loaded yet to where its pixels will be.

    Of 16-bit RGB only high bytes are decoded, so each colour that has the key's is transparent.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB") or key is None:
        return
    bits = _KEY_BITS.get(str(image.tile[0].args), 8)

    def scaled(value: int) -> int:
        return value >> 8 if bits == 16 else (value % 2**bits) * (255 // (2**bits - 1))

    image.info["transparency"] = scaled(key) if image.mode == "L" else tuple(map(scaled, key))


def from_16_bits(image: Image.Image) -> Image.Image:
    """Keeps the high byte: Pillow's own conversion would cut every value at 255."""
    values = np.asarray(image)
    grey = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey.convert("RGB")
    grey = grey.convert("RGBA")
    grey.putalpha(Image.fromarray(np.where(values == key, np.uint8(0), np.uint8(255))))
    return grey


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What brings a picture upright, by its EXIF or XMP block."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return None  # the pixels are whole; a damaged EXIF block says nothing about them
    return ORIENTATIONS.get(orientation)
