"""What a picture may cost: its pixels and scans are counted before any of it is decoded."""

import re

from PIL import Image

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
# But for padding, stuffed bytes, and what no length follows: TEM, RST, SOI.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_END, _SCAN = 0xD9, 0xDA
_SEQUENTIAL = (0xC0, 0xC1, 0xC3, 0xC9)  # and not progressive


class ImageError(SampleError):
    """An image is unusable.

    Its reason is `image_empty`, `image_format`, `image_pixels`, `image_scans`, `image_shape` or
    `image_undecodable`.
    """


def pixel_limit(image: Image.Image) -> int:
    """The largest width x height that is decoded of an opened picture's format."""
    is_plain_jpeg = image.format in ("JPEG", "MPO") and image.mode != "CMYK"
    return MAX_JPEG_PIXELS if is_plain_jpeg else MAX_PIXELS


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuses a picture by its header, before any of its pixels take memory.

    Raises:
        ImageError: `image_pixels`.
    """
    if width * height > max_pixels:
        raise ImageError(
            "image_pixels",
            f"the image has {width} x {height} pixels, allowed are {max_pixels}: shrink it",
        )


def check_scans(data: bytes, pixels: int) -> None:
    """Refuses a JPEG of very many scans, which a decoder goes over all pixels for.

    Args:
        data: the encoded JPEG.
        pixels: width x height, by its header.

    Raises:
        ImageError: `image_scans`.
    """
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
