"""Formats of pictures that are read: what Pillow calls them, how files are named and begin."""

import functools
import importlib
from typing import Any, NamedTuple

from PIL import Image, features


class ImageFormat(NamedTuple):
    """A format of pictures.

    Attributes:
        name: Pillow's.
        extensions: how its files end, small letters without a dot; what is written has the first.
        begins: each an offset and the bytes that stand there.
        plugin: the module of Pillow that reads it.
        feature: the library that Pillow may have been built without; None if it needs none.
    """

    name: str
    extensions: tuple[str, ...]
    begins: tuple[tuple[int, bytes], ...]
    plugin: str
    feature: str | None = None


# What people have, and whose decoders are fuzzed; no FITS, EPS or PSD. Where a record of a tar
# shard holds pictures of several formats, an earlier one of this table is taken.
FORMATS = (
    ImageFormat("JPEG", ("jpg", "jpeg", "jfif", "jpe"), ((0, b"\xff\xd8\xff"),), "Jpeg", "jpg"),
    ImageFormat("PNG", ("png",), ((0, b"\x89PNG\r\n\x1a\n"),), "Png", "zlib"),
    ImageFormat("WEBP", ("webp",), ((8, b"WEBP"),), "WebP", "webp"),
    ImageFormat("GIF", ("gif",), ((0, b"GIF87a"), (0, b"GIF89a")), "Gif"),
    ImageFormat("BMP", ("bmp",), ((0, b"BM"),), "Bmp"),
    ImageFormat("AVIF", ("avif",), ((4, b"ftypavif"), (4, b"ftypavis")), "Avif", "avif"),
    ImageFormat("TIFF", ("tif", "tiff"), ((0, b"II*\0"), (0, b"MM\0*")), "Tiff", "libtiff"),
    ImageFormat(
        "JPEG2000",
        ("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"),
        ((0, b"\0\0\0\x0cjP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51")),
        "Jpeg2K",
        "jpg_2000",
    ),
    ImageFormat(
        "PPM",
        ("ppm", "pgm", "pbm", "pnm"),
        tuple((0, b"P%d" % number) for number in range(1, 7)),
        "Ppm",
    ),
)
EXTENSIONS = tuple(extension for form in FORMATS for extension in form.extensions)
# Formats that people have and no Pillow reads: counted under a name that says so.
_OTHERS = {
    "HEIC": ((4, b"ftypheic"), (4, b"ftypheix"), (4, b"ftypmif1"), (4, b"ftypmsf1")),
    "JPEG XL": ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL \r\n\x87\n")),
    "BigTIFF": ((0, b"II+\0"), (0, b"MM\0+")),
}


def format_of(data: bytes) -> ImageFormat | None:
    """Finds the format of an encoded picture by how it begins; None if it is none of FORMATS."""
    for form in FORMATS:
        if _begins(data, form.begins) or (form.name == "AVIF" and _says_avif(data)):
            return form
    return None


def other_format_of(data: bytes) -> str | None:
    """Names the format of a picture that nothing here reads, if it is a known one."""
    return next((name for name, begins in _OTHERS.items() if _begins(data, begins)), None)


@functools.cache
def is_readable(form: ImageFormat) -> bool:
    """Whether this Pillow reads a format, once its plugin is loaded."""
    try:
        plugin: Any = importlib.import_module(f"PIL.{form.plugin}ImagePlugin")
    except ImportError:  # a Pillow of before that format
        return False
    if form.name == "AVIF":  # the loader's workers are the parallelism
        plugin.DEFAULT_MAX_THREADS = 1
    return form.name in Image.OPEN and form.feature in (None, *features.get_supported())


def _begins(data: bytes, begins: tuple[tuple[int, bytes], ...]) -> bool:
    return any(data.startswith(piece, offset) for offset, piece in begins)


def _says_avif(data: bytes) -> bool:
    """Whether a file of HEIF's container, by its first box, may be read as AVIF."""
    if not _begins(data, ((4, b"ftypmif1"), (4, b"ftypmsf1"))):
        return False
    return b"avif" in data[16 : min(int.from_bytes(data[:4], "big"), 256)]
