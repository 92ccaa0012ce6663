"""JPEGs at speed: decoded at a fraction of their size, cropped, resized with antialiasing.

The DCT of a JPEG gives the image at 1/2, 1/4 or 1/8 of its size for less than the whole; other
fractions cost more than they save, because libjpeg-turbo has no vector code for them. What is left
is resized bilinearly to a whole multiple of the target and averaged, which is as close to Pillow's
bicubic as OpenCV's INTER_AREA is, at a third of its time (benchmarks/input.py).

The reference is `clipjax.data.images.preprocess`; this is the fast path of training.
"""

import io
import math
import threading

import numpy as np
from PIL import ExifTags, Image

from clipjax.data.images.limits import MAX_JPEG_PIXELS, Box, check_pixels, check_scans

try:
    import cv2
    import simplejpeg
except ImportError as error:
    raise ValueError(
        f"decode = 'fast' needs {error.name}: pip install 'clipjax[fast]', or decode = 'reference'"
    ) from error

# The loader's workers are the parallelism; a pool of OpenCV's in each would only get in the way.
cv2.setNumThreads(1)

_SCALES = (8, 4, 2, 1)
# Memory that a thread uses again and again: fresh pages for every image cost as much as the work.
_SCRATCH = threading.local()
_COLORSPACES = ("YCbCr", "Gray", "RGB")  # CMYK and YCCK go by the reference path
# Padding, and markers that no length follows: TEM, RST, SOI, EOI.
_BARE_MARKERS = bytes((0x01, *range(0xD0, 0xDA), 0xFF))


class FastJpeg:
    """A JPEG whose header is read; `crop` decodes it."""

    def __init__(self, data: bytes, width: int, height: int):
        self._data, self.width, self.height = data, width, height

    @classmethod
    def open(cls, data: object) -> "FastJpeg | None":
        """Reads a header; None for what has to go by the reference path.

        That is anything but encoded bytes, another format, CMYK, a rare subsampling, or a picture
        that its EXIF or XMP block turns or mirrors.

        Raises:
            ImageError: `image_pixels` or `image_scans`, as on the reference path.
        """
        if not isinstance(data, bytes) or not data.startswith(b"\xff\xd8\xff"):
            return None
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        except (ValueError, KeyError):  # KeyError: a subsampling without a name, as 4:4:1
            return None  # the reference path says what is wrong with it, if anything is
        if colorspace not in _COLORSPACES or orientation_of(data) != 1:
            return None
        check_pixels(width, height, MAX_JPEG_PIXELS)
        check_scans(data, width * height)
        return cls(data, width, height)

    def crop(self, box: Box, size: int) -> np.ndarray | None:
        """Resizes a part of the image; None where the reference path has to decode it.

        That is a picture with damage, which Pillow reads where only its last bytes, or restart
        markers, are wrong.

        Args:
            box: left, top, right, bottom in pixels of the whole image.

        Returns:
            u8 `[size, size, 3]`.
        """
        left, top, right, bottom = box
        fraction = min(right - left, bottom - top) / size
        scale = next(scale for scale in _SCALES if scale <= fraction or scale == 1)
        height, width = math.ceil(self.height / scale), math.ceil(self.width / scale)
        try:
            image = simplejpeg.decode_jpeg(
                self._data,
                min_height=height,
                min_width=width,
                buffer=_scratch("decoded", height, width),
            )
        except ValueError:
            return None
        # A decoded pixel is `scale` pixels, also where the last one reaches beyond the image.
        rows = _bounds(top / scale, bottom / scale, image.shape[0])
        columns = _bounds(left / scale, right / scale, image.shape[1])
        return resize_to(image[rows, columns], size)


def _bounds(low: float, high: float, limit: int) -> slice:
    """The whole pixels next to a part: never fewer than fit into it, as halves are rounded up."""
    start = min(math.floor(low + 0.5), limit - 1)
    return slice(start, max(math.floor(high + 0.5), start + 1))


def resize_to(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear to a whole multiple of the target, in steps of at most 1.5 pixels, then the mean.

    Steps of up to 1 would hardly be nearer to the reference, and a mean of 2 x 2 is the quickest.
    """
    height, width = (max(2, math.ceil(side / size / 1.5)) * size for side in image.shape[:2])
    fine = _scratch("fine", height, width)
    cv2.resize(image, (width, height), dst=fine, interpolation=cv2.INTER_LINEAR)
    result = np.empty((size, size, 3), np.uint8)
    return cv2.resize(fine, (size, size), dst=result, interpolation=cv2.INTER_AREA)


def _scratch(name: str, height: int, width: int) -> np.ndarray:
    """This thread's array of that name, u8 `[height, width, 3]`; what it held is overwritten."""
    memory = getattr(_SCRATCH, name, None)
    if memory is None or memory.size < height * width * 3:
        memory = np.empty(height * width * 3, np.uint8)
        setattr(_SCRATCH, name, memory)
    return memory[: height * width * 3].reshape(height, width, 3)


def orientation_of(data: bytes) -> int:
    """The orientation that the reference path applies; 1 without one, 0 where it cannot be told."""
    if not _may_be_turned(data):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # hostile bytes raise many types; the reference path names what is wrong
        return 0


def _may_be_turned(data: bytes) -> bool:
    """Walks over the segments in front of the scan: cheaper than a parser, for every image."""
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker == b"\xda":
            return False
        if marker in _BARE_MARKERS:
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xe1":
            if data.startswith(b"Exif\0\0", position + 4):
                return True
            if data.find(b"tiff:Orientation", position + 4, end) >= 0:  # XMP
                return True
        position = end
    return True  # odd, but perhaps readable
