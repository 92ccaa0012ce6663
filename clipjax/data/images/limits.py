"""What a picture may cost: its pixels and scans are counted before any of it is decoded."""

import re
from typing import Any

from PIL import Image, ImageFile

from clipjax.data.source import SampleError

# 8K. A pixel takes up to 16 bytes on the way (WebP, which Pillow holds four times), so half a
# gigabyte at most, and about a second. Cameras of more write JPEGs; what the web serves is smaller.
# Below Pillow's own limit of 89.5 million, so that this check speaks first.
MAX_PIXELS = 7680 * 4320
# What cameras call 61 megapixels: grey and colour JPEGs cost half as much a pixel.
MAX_JPEG_PIXELS = 9600 * 6400
# libjpeg's own scripts make 10 scans, 18 of CMYK. A decoder goes over all blocks for each, also
# where a few bytes say that nothing changes: of the largest pictures, 10 are allowed, and 18.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 10 * MAX_JPEG_PIXELS
# Of JPEG 2000, whose decoder takes ten times as long a pixel: 4K.
MAX_JPEG_2000_PIXELS = 1 << 23
# Of PPM whose pixels are written as text, or have another range than 8 or 16 bits: Pillow reads
# them in Python.
MAX_PYTHON_PIXELS = 1 << 20
# As Pillow calls them. Others (LZMA, Zstandard, WebP, old JPEG, scientific ones) are rare, and not
# in every libtiff.
TIFF_COMPRESSIONS = (
    *("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg"),
    *("tiff_ccitt", "group3", "group4"),
)
_DEEP = ("JPEG2000", "PNG", "PPM")  # of which Pillow's mode I has 16 bits
# But for padding, stuffed bytes, and what no length follows: TEM, RST, SOI.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_END, _SCAN = 0xD9, 0xDA
_SEQUENTIAL = (0xC0, 0xC1, 0xC3, 0xC9)  # and not progressive


class ImageError(SampleError):
    """An image is unusable.

    Its reason is `image_empty`, `image_format`, `image_no_decoder`, `image_parts`, `image_pixels`,
    `image_scans`, `image_shape` or `image_undecodable`.
    """


Box = tuple[float, float, float, float]  # left, top, right, bottom of a part, in pixels


def pixel_limit(image: ImageFile.ImageFile) -> int:
    """The largest width x height that is decoded of an opened picture's format."""
    if image.format in ("JPEG", "MPO"):
        return MAX_PIXELS if image.mode == "CMYK" else MAX_JPEG_PIXELS
    if image.format == "JPEG2000":
        return MAX_JPEG_2000_PIXELS
    if image.format == "PPM" and image.tile[0][0] != "raw":
        return MAX_PYTHON_PIXELS
    if image.format == "TIFF" and image.info["compression"] == "jpeg":
        return MAX_SCANNED_PIXELS // MAX_SCANS  # libtiff itself refuses strips of more scans
    return MAX_PIXELS


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuses a picture by its header, before any of its pixels take memory."""
    if width * height > max_pixels:
        raise ImageError(
            "image_pixels",
            f"the image has {width} x {height} pixels, allowed are {max_pixels}: shrink it",
        )


def check_scans(data: bytes, pixels: int) -> None:
    """Refuses a JPEG of very many scans, which a decoder goes over all pixels for."""
    allowed = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(pixels, 1))
    if count_scans(data, allowed + 1) > allowed:
        raise ImageError(
            "image_scans",
            f"the JPEG of {pixels} pixels has more than {allowed} scans, which is the most allowed "
            "for its size: encode it anew",
        )


def count_scans(data: bytes, limit: int) -> int:
    """Counts the scans of a JPEG that a decoder reads, up to `limit`.

    Markers are followed as libjpeg does it: what stands in a thumbnail, or behind the end (the film
    of a phone's "motion photo"), is not taken for one.
    """
    scans, position, colours = 0, 2, 0
    while scans < limit and (found := _MARKER.search(data, position)):
        position = found.end()
        kind = data[position - 1]
        if kind == _SCAN:
            scans += 1
            if colours and _byte(data, position + 2) >= colours:
                break  # all colours at once: no decoder looks for another scan
        elif kind in _SEQUENTIAL:
            colours = _byte(data, position + 7)
        elif kind == _END:
            break
        position += int.from_bytes(data[position : position + 2], "big")
    return scans


def _byte(data: bytes, position: int) -> int:
    return data[position] if position < len(data) else 0


def check_white(image: Image.Image) -> None:
    """Refuses a picture, decoded or not, whose mode does not say which number is white."""
    if image.mode == "F" or (image.mode == "I" and image.format not in _DEEP):
        raise ImageError(
            "image_format",
            f"the pixels of the {image.format or 'Pillow image'} are numbers with a sign, of 32 "
            "bits or with a fraction: nothing says which is white. Bring them to 8 or 16 bits "
            "(Pillow's modes L, RGB or I;16)",
        )
    tiff: Any = image
    if image.format == "TIFF" and image.mode == "I;16" and tiff.tag_v2.get(262) == 0:
        raise ImageError(
            "image_format", "the TIFF has 16 bits of which 0 is white: Pillow takes it for black"
        )


def check_opened(image: Image.Image) -> None:
    """Refuses an opened picture, none of whose pixels is decoded, for what its pixels are."""
    check_white(image)
    if image.format == "TIFF" and image.info["compression"] not in TIFF_COMPRESSIONS:
        raise ImageError(
            "image_format",
            f"the TIFF is packed by {image.info['compression']!r}; what is read is "
            f"{', '.join(TIFF_COMPRESSIONS)}",
        )
