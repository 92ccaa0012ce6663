"""What TIFF and JPEG 2000 say of their parts: counted before a decoder takes memory for them."""

import contextlib
import math
import struct
from collections.abc import Iterator

from clipjax.data.images.avif import boxes_of, check_avif
from clipjax.data.images.limits import MAX_PIXELS, ImageError

# Strips or tiles of a TIFF, each of which costs Pillow a step in Python: rows of the tallest
# picture that is a page, in each of four colours.
MAX_STRIPS = 1 << 15
MAX_TAGS = 512
# Of JPEG 2000. openjpeg holds 10 KB a tile, some 200 bytes a precinct and as many a code block;
# a packet (a layer of a precinct) costs a look, whatever is in it.
MAX_COMPONENTS, MAX_TILES, MAX_TILE_PARTS = 4, 1 << 12, 1 << 14
MAX_PRECINCTS, MAX_PACKETS = 1 << 17, 1 << 20
MIN_CODE_BLOCK = 256  # samples; 4,096 are usual
_SOT, _SOD, _SIZ, _COD, _COC = 0xFF90, 0xFF93, 0xFF51, 0xFF52, 0xFF53
_TIFF_SIZES = {1: 1, 3: 2, 4: 4}  # bytes of a number, by its type
_WIDTH, _LENGTH, _STRIPS, _ROWS = 256, 257, 273, 278
_TILE_WIDTH, _TILE_LENGTH, _TILES = 322, 323, 324


def check_parts(name: str, data: bytes) -> None:
    """Refuses a picture whose parts cost more than its pixels.

    Raises:
        ImageError: `image_parts` or `image_pixels`; of AVIF `image_undecodable`, too.
    """
    if name == "AVIF":
        check_avif(data)
    elif name == "TIFF":
        _check_tiff(data)
    elif name == "JPEG2000":
        _check_jpeg_2000(data)


def _check_tiff(data: bytes) -> None:
    """Counts strips and tiles of the first picture; what is damaged is left to the decoder."""
    order = "<" if data.startswith(b"II") else ">"
    tags: dict[int, tuple[int, int]] = {}
    try:
        for tag, entry in _tiff_tags(data, order):
            if tag in tags or len(tags) == MAX_TAGS:  # Pillow reads what each points to
                what = f"its tag {tag} twice" if tag in tags else f"more than {MAX_TAGS} tags"
                raise ImageError("image_parts", f"the TIFF has {what}: write it anew")
            tags[tag] = entry
    except struct.error:
        return
    width, height = (tags.get(tag, (1, 0))[1] for tag in (_WIDTH, _LENGTH))
    count, wide, high = tags.get(_STRIPS, (0, 0))[0], width, tags.get(_ROWS, (1, height))[1]
    if _TILES in tags or _TILE_WIDTH in tags:
        count = max(count, tags.get(_TILES, (0, 0))[0])
        wide, high = (tags.get(tag, (1, 0))[1] for tag in (_TILE_WIDTH, _TILE_LENGTH))
    else:
        high = min(high, height)
    # A decoder unpacks a whole tile, however small the picture is, and Pillow all of those that
    # are named, however many stand in one place; each colour may have its own.
    if wide * high > MAX_PIXELS:
        raise ImageError(
            "image_pixels",
            f"the TIFF has tiles of {wide} x {high} pixels, allowed are {MAX_PIXELS}: write it "
            "with smaller ones",
        )
    if count > MAX_STRIPS or count * wide * high > 6 * (width + wide) * (height + high):
        raise ImageError(
            "image_parts",
            f"the TIFF of {width} x {height} pixels has {count:,} strips or tiles, each of "
            f"{wide} x {high}: write it with fewer, {MAX_STRIPS:,} at most",
        )


def _tiff_tags(data: bytes, order: str) -> Iterator[tuple[int, tuple[int, int]]]:
    """Gives the tags of the first directory: number, and count and first value where it is one."""
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    for entry in range(struct.unpack_from(f"{order}H", data, start)[0]):
        place = start + 2 + 12 * entry
        tag, kind, count, value = struct.unpack_from(f"{order}HHI4s", data, place)
        size = _TIFF_SIZES.get(kind, 4)
        yield tag, (count, int.from_bytes(value[:size], "little" if order == "<" else "big"))


def _check_jpeg_2000(data: bytes) -> None:
    """Counts tiles, precincts and packets; what is damaged is left to the decoder."""
    size = None
    with contextlib.suppress(struct.error):
        position: int | None = 0
        if not data.startswith(b"\xff\x4f"):  # a file of boxes
            codes = (start for kind, start, _ in boxes_of(data, 0, len(data)) if kind == b"jp2c")
            position = next(codes, None)
        for marker, start, segment in () if position is None else _segments(data, position):
            if marker == _SIZ:
                size = _Size(segment)
            elif marker in (_COD, _COC):
                if size is None or start < 0:
                    raise _refused("codes of its own in a part")
                _check_codes(segment, marker, size)


def _segments(data: bytes, position: int) -> Iterator[tuple[int, int, bytes]]:
    """Gives the segments of the main header, and of those of parts the ones of codes.

    Yields:
        `(marker, place, segment)`; the place is negative in a part.
    """
    position += 2
    part_end, parts = None, 0
    while position < len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == _SOT:
            parts += 1
            if parts > MAX_TILE_PARTS:
                raise _refused(f"more than {MAX_TILE_PARTS} parts")
            size = struct.unpack_from(">I", data, position + 6)[0]
            part_end = position + size if size else None
        elif marker == _SOD:
            if part_end is None or part_end <= position:
                return
            position = part_end
            continue
        elif marker == 0xFFD9:
            return
        else:
            sign = 1 if parts == 0 else -1
            yield marker, sign * position, data[position + 4 : position + 2 + length]
        position += 2 + length


class _Size:
    """What the segment SIZ says."""

    def __init__(self, segment: bytes):
        x1, y1, x0, y0, tile_x, tile_y, origin_x, origin_y, self.components = struct.unpack_from(
            ">8IH", segment, 2
        )
        self.width, self.height = max(0, x1 - x0), max(0, y1 - y0)
        if self.components > MAX_COMPONENTS:
            raise _refused(f"{self.components} colours, allowed are {MAX_COMPONENTS}")
        if self.width * self.height > MAX_PIXELS:  # the box in front may say less
            raise ImageError(
                "image_pixels",
                f"the image has {self.width} x {self.height} pixels, allowed are {MAX_PIXELS}: "
                "shrink it",
            )
        across = _parts(x1 - origin_x, tile_x)
        down = _parts(y1 - origin_y, tile_y)
        self.tiles = across * down
        self.tile_size = min(tile_x, self.width), min(tile_y, self.height)
        if self.tiles > MAX_TILES:
            raise _refused(f"{self.tiles:,} tiles, allowed are {MAX_TILES:,}")


def _check_codes(segment: bytes, marker: int, size: _Size) -> None:
    """Counts the precincts and packets that a segment COD or COC makes."""
    layers = 1
    if marker == _COD:
        style, layers = segment[0], struct.unpack_from(">H", segment, 2)[0]
        codes = segment[5:]
    else:
        style, codes = segment[1], segment[2:]
    levels, log_width, log_height = struct.unpack_from(">BBB", codes)
    if 1 << ((log_width & 15) + (log_height & 15) + 4) < MIN_CODE_BLOCK or levels > 32:
        raise _refused(f"code blocks of less than {MIN_CODE_BLOCK} samples, or {levels} levels")
    precincts = 0
    for level in range(levels + 1):
        width, height = (side / 2 ** (levels - level) for side in size.tile_size)
        logs = codes[5 + level] if style & 1 else 0xFF
        across, down = (width / 2 ** (logs & 15), height / 2 ** (logs >> 4))
        # One more each way where a tile does not begin at a multiple.
        precincts += (math.ceil(across) + 1) * (math.ceil(down) + 1)
    precincts *= size.tiles * size.components
    if precincts > MAX_PRECINCTS or precincts * layers > MAX_PACKETS:
        raise _refused(f"some {precincts:,} precincts in {layers:,} layers")


def _parts(length: int, part: int) -> int:
    return max(1, math.ceil(length / part)) if part else 1 << 32


def _refused(what: str) -> ImageError:
    return ImageError("image_parts", f"the JPEG 2000 has {what}: write it anew with fewer parts")
