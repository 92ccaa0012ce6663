"""What the codes of an AVIF file will decode to: its boxes may say less.

The size of a frame stands in the AV1 sequence header, which a decoder follows; boxes around it
say what is shown. Both are read here, the codes as far as their headers.

Reference: ISO/IEC 14496-12 (boxes), 23008-12 (items); AV1 bitstream specification, section 5.
"""

import dataclasses
import itertools
import struct
from collections.abc import Iterator

from clipjax.data.images.limits import MAX_PIXELS, ImageError

MAX_FRAMES = 8  # of one item: layers that refine each other are 4 at most
MAX_UNITS = 1 << 12  # of one item: a frame may stand in many, called tile groups
MAX_CODED_PIXELS = 3 * MAX_PIXELS  # a picture, its transparency, and a smaller one or two
MAX_SAID = 4  # bytes that items claim, times those of the file: extents may overlap
_FRAMES = (3, 6)  # kinds of units: a frame's header, a frame
_SEQUENCE = 1
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def check_avif(data: bytes) -> None:
    """Refuses an AVIF file whose codes are larger, or more, than a picture needs.

    Raises:
        ImageError: `image_pixels` or `image_parts`; `image_undecodable` if its boxes are damaged.
    """
    largest = total = said = 0
    try:
        for code in codes_of(data):
            said += len(code)
            if said > MAX_SAID * len(data):
                raise _refused(f"names {said:,} bytes and has {len(data):,}")
            area, frames = pixels_of(code)
            largest, total = max(largest, area), total + area * frames
    except (struct.error, IndexError) as error:
        raise ImageError(
            "image_undecodable", f"the boxes of the AVIF are damaged: {error}"
        ) from error
    if not largest:
        raise ImageError("image_undecodable", "the AVIF has no codes of AV1")
    if largest > MAX_PIXELS or total > MAX_CODED_PIXELS:
        raise ImageError(
            "image_pixels",
            f"the codes of the AVIF are of {total:,} pixels, in frames of {largest:,}: allowed are "
            f"{MAX_CODED_PIXELS:,} and {MAX_PIXELS:,}: shrink it",
        )


def codes_of(data: bytes) -> Iterator[bytes]:
    """Gives the codes of all items of AV1, and of the first sample of each track."""
    for kind, start, end in boxes_of(data, 0, len(data)):
        if kind == b"meta":
            yield from _codes_of_items(data, start + 4, end)
        elif kind == b"moov":
            yield from _codes_of_tracks(data, start, end)


def boxes_of(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Gives kind, and where its content starts and ends, of each box; struct.error if damaged."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        stop = end if size == 0 else min(start + size, end)
        yield kind, start + head, stop  # first: openjpeg judges no length of the box of its codes
        if stop < start + head:
            raise struct.error(f"a box of {size} bytes")
        start = stop


def _codes_of_items(data: bytes, start: int, end: int) -> Iterator[bytes]:
    boxes = list(boxes_of(data, start, end))
    stored = [(begin, stop) for kind, begin, stop in boxes if kind == b"idat"]
    coded = {
        item
        for kind, begin, stop in boxes
        if kind == b"iinf"
        for item in _coded_items(data, begin, stop)
    }
    for kind, begin, _ in boxes:
        if kind == b"iloc":
            for item, method, extents in _places(data, begin):
                if item not in coded:
                    continue
                if method > 1 or (method == 1 and len(stored) != 1):
                    raise struct.error("an item that is built of others")
                base = stored[0][0] if method == 1 else 0
                yield b"".join(data[base + at : base + at + size] for at, size in extents)


def _coded_items(data: bytes, start: int, end: int) -> Iterator[int]:
    """Gives the numbers of the items whose type is `av01`."""
    start += 4 + (2 if data[start] == 0 else 4)
    for kind, begin, _ in boxes_of(data, start, end):
        if kind == b"infe":
            form = ">H2x4s" if data[begin] == 2 else ">I2x4s"
            item, what = struct.unpack_from(form, data, begin + 4)
            if what == b"av01":
                yield item


def _places(data: bytes, start: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Gives number, method and extents (offset, size) of each item of a box `iloc`."""
    version, sizes = data[start], struct.unpack_from(">H", data, start + 4)[0]
    offset_size, length_size, base_size, index_size = (
        sizes >> shift & 15 for shift in (12, 8, 4, 0)
    )
    position = start + 6

    def number(size: int) -> int:
        nonlocal position
        if position + size > len(data):
            raise struct.error("a box that ends")
        position += size
        return int.from_bytes(data[position - size : position], "big")

    wide = 4 if version == 2 else 2
    total = 0
    for _ in range(number(wide)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)  # of the file
        base = number(base_size)
        extents, count = [], number(2)
        if count > 1 and not offset_size + length_size:  # of no bytes: any number of them
            raise struct.error("extents that say nothing")
        for _ in range(count):
            if version:
                number(index_size)
            at, size = base + number(offset_size), number(length_size)
            size = min(size or len(data), max(0, len(data) - at))
            total += size
            if total > MAX_SAID * len(data):
                raise _refused(f"names more than {total:,} bytes and has {len(data):,}")
            extents.append((at, size))
        yield item, method, extents


def _codes_of_tracks(data: bytes, start: int, end: int) -> Iterator[bytes]:
    """Gives the first sample of each track: all that is decoded of an animation."""
    places, sizes = [], []
    boxes = list(boxes_of(data, start, end))
    while boxes:
        kind, begin, stop = boxes.pop()
        if kind in _CONTAINERS:
            boxes += boxes_of(data, begin, stop)
        elif kind in (b"stco", b"co64"):
            form = ">I" if kind == b"stco" else ">Q"
            places.append((begin, struct.unpack_from(form, data, begin + 8)[0]))
        elif kind == b"stsz":
            common = struct.unpack_from(">I", data, begin + 4)[0]
            sizes.append((begin, common or struct.unpack_from(">I", data, begin + 12)[0]))
    if len(places) != len(sizes):
        raise struct.error("tracks without samples")
    for (_, at), (_, size) in zip(sorted(places), sorted(sizes), strict=True):
        yield data[at : at + size]


def pixels_of(code: bytes) -> tuple[int, int]:
    """Pixels of the largest frame in the codes of an item or sample, and how many frames it has."""
    area, frames = 0, 0
    for kind, payload in _units(code):
        if kind == _SEQUENCE:
            area = max(area, _Bits(payload).frame_area())
        elif kind in _FRAMES:
            frames += 1
    if not area:
        raise ImageError("image_undecodable", "codes of the AVIF have no sequence header")
    if frames > MAX_FRAMES:
        raise _refused(f"has {frames} frames in one, allowed are {MAX_FRAMES}")
    return area, max(1, frames)


def _units(code: bytes) -> Iterator[tuple[int, bytes]]:
    """Gives the kind and the content of each unit (OBU)."""
    position = units = 0
    while position < len(code):
        units += 1
        if units > MAX_UNITS:
            raise _refused(f"has more than {MAX_UNITS} units in one")
        head = code[position]
        position += 2 if head & 4 else 1
        size = len(code) - position
        if head & 2:
            size = 0
            for shift in itertools.count(0, 7):
                byte = code[position]
                position, size = position + 1, size | (byte & 127) << shift
                if not byte & 128 or shift > 49:
                    break
        yield head >> 3 & 15, code[position : position + size]
        position += size


def _refused(what: str) -> ImageError:
    return ImageError("image_parts", f"the AVIF {what}: write it anew")


@dataclasses.dataclass
class _Bits:
    """Reads a sequence header, bit by bit."""

    content: bytes
    position: int = 0

    def take(self, count: int) -> int:
        end = self.position + count
        if end > 8 * len(self.content):
            raise struct.error("a sequence header that ends")
        part = int.from_bytes(self.content[self.position // 8 : (end + 7) // 8], "big")
        self.position = end
        return part >> -end % 8 & (1 << count) - 1

    def frame_area(self) -> int:
        """Gives the largest frame's width x height."""
        self.take(4)  # profile, whether it is a still picture
        if self.take(1):  # a short header
            self.take(5)
        else:
            self._skip_operating_points()
        width_bits, height_bits = self.take(4) + 1, self.take(4) + 1
        return (self.take(width_bits) + 1) * (self.take(height_bits) + 1)

    def _skip_operating_points(self) -> None:
        delay_bits = 0
        if self.take(1):  # times
            self.take(64)
            if self.take(1):  # a number of as many bits as zeros stand before it
                zeros = 0
                while not self.take(1):
                    zeros += 1
                self.take(zeros if zeros < 32 else 0)
            if self.take(1):  # a model of the decoder
                delay_bits = self.take(5) + 1
                self.take(42)
        has_display_delay = self.take(1)
        for _ in range(self.take(5) + 1):
            self.take(12)
            if self.take(5) > 7:
                self.take(1)
            if delay_bits and self.take(1):
                self.take(2 * delay_bits + 1)
            if has_display_delay and self.take(1):
                self.take(4)
