"""Pictures that were damaged or forged, in every format that is read."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = (40, 30)


def originals():
    """Whole pictures: name -> bytes."""
    rng = np.random.Generator(np.random.Philox(key=3))
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    rgb = np.stack([6 * x, 8 * y, 3 * (x + y)], -1).astype(np.uint8) // 2
    rgb += rng.integers(0, 40, rgb.shape, np.uint8)
    image = Image.fromarray(rgb)
    frames = [image.rotate(90 * turn) for turn in range(3)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    icc = b"\0\0\2\x0cADBE" + rng.bytes(516)
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    deep = Image.fromarray((rgb[..., 0].astype(np.uint16) << 8) + 7)
    moving = {"save_all": True, "append_images": frames[1:], "duration": 40, "loop": 0}

    def saved(picture, fmt, **options):
        out = io.BytesIO()
        picture.save(out, fmt, **options)
        return out.getvalue()

    return {
        "jpeg": saved(image, "JPEG", quality=90),
        "jpeg progressive": saved(image, "JPEG", progressive=True, exif=exif, icc_profile=icc),
        "jpeg grey": saved(image.convert("L"), "JPEG", restart_marker_blocks=2),
        "jpeg cmyk": saved(image.convert("CMYK"), "JPEG"),
        "png": saved(image, "PNG", icc_profile=icc, exif=exif),
        "png palette": saved(image.quantize(20), "PNG", transparency=3),
        "png alpha": saved(alpha, "PNG"),
        "png 16": saved(deep, "PNG"),
        "webp": saved(image, "WEBP", quality=80, exif=exif, icc_profile=icc),
        "webp lossless": saved(alpha, "WEBP", lossless=True),
        "webp moving": saved(image, "WEBP", **moving),
        "gif": saved(image.quantize(30), "GIF", transparency=2),
        "gif moving": saved(image, "GIF", **moving),
        "bmp": saved(image, "BMP"),
        "bmp palette": saved(image.quantize(16), "BMP"),
        "avif": saved(image, "AVIF", quality=80, exif=exif),
        "avif alpha": saved(alpha, "AVIF"),
        "tiff": saved(image, "TIFF", exif=exif),
        "tiff deflate": saved(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": saved(image.convert("L"), "TIFF", compression="jpeg"),
        "tiff 16": saved(deep, "TIFF", compression="tiff_lzw"),
        "jpeg 2000": saved(image, "JPEG2000"),
        "jpeg 2000 tiles": saved(image, "JPEG2000", tile_size=(16, 16), no_jp2=True),
        "ppm": saved(image, "PPM"),
        "pgm 16": saved(deep, "PPM"),
    }


def mutated(content, rng):
    """One random damage: flips, cuts, holes, moved pieces, numbers in the header."""
    data, size = bytearray(content), len(content)
    start = int(rng.integers(size))
    end = min(size, start + int(rng.integers(1, 64)))
    kind = int(rng.integers(8))
    if kind == 0:
        for place in rng.integers(size, size=int(rng.integers(1, 9))):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start:end] = bytes(end - start)
    elif kind == 3:
        data[start:end] = rng.bytes(end - start)
    elif kind == 4:
        del data[start:end]
    elif kind == 5:
        data[start:start] = data[start:end] * int(rng.integers(1, 4))
    elif kind == 6:  # most of what is said about the picture stands in front
        place = int(rng.integers(min(size, 120)))
        data[place : place + 1] = rng.bytes(int(rng.integers(1, 5)))
    else:
        place = int(rng.integers(min(size - 4, 120)))
        number = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF]))
        data[place : place + 4] = struct.pack("<I" if rng.integers(2) else ">I", number)
    return bytes(data)


def chunk(name, content):
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(width, height, *chunks, depth=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def packed_zeros(count):
    """A few kilobytes that unpack to `count` bytes."""
    packer = zlib.compressobj(1)
    block = bytes(1 << 20)
    out = [packer.compress(block[: count - start]) for start in range(0, count, 1 << 20)]
    return b"".join([*out, packer.flush()])


def empty_png(width, height, *chunks, depth=8, colour=2):
    """Every sample is 0."""
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth
    rows = packed_zeros((1 + width * bits // 8) * height)
    return png(width, height, *chunks, chunk(b"IDAT", rows), depth=depth, colour=colour)


def empty_webp(width, height):
    """One transparent colour, of which the codes are of no length: 40 bytes at any size."""
    out = io.BytesIO()
    Image.new("RGBA", (16, 16), (1, 2, 3, 9)).save(out, "WEBP", lossless=True)
    data = bytearray(out.getvalue())
    place = data.index(b"VP8L") + 9  # behind the signature: 14 bits of each side less 1
    flags = int.from_bytes(data[place : place + 4], "little") >> 28 << 28
    sides = flags | (height - 1) << 14 | (width - 1)
    data[place : place + 4] = sides.to_bytes(4, "little")
    return bytes(data)


def scanned_jpeg(side, scans, *, progressive=True):
    """A grey JPEG of very many scans; or one of three colours, a scan of one colour each."""

    def bits(text):
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

    blocks = (-(-side // 8)) ** 2
    colours = 1 if progressive else 3
    frame = struct.pack(">BHHB", 8, side, side, colours)
    frame += b"".join(bytes([number + 1, 0x11, 0]) for number in range(colours))
    first = b"\0" + b"\1" + bytes(15) + b"\0"  # one code, a bit: no difference
    rest = b"\x10" + b"\1" + bytes(15) + (b"\xe0" if progressive else b"\0")
    head = segment(b"\xdb", b"\0" + b"\1" * 64)
    head += segment(b"\xc2" if progressive else b"\xc0", frame)
    head += segment(b"\xc4", first) + segment(b"\xc4", rest)
    if progressive:  # the code says that the next 32,767 blocks stay as they are
        head += segment(b"\xda", bytes([1, 1, 0, 0, 0, 0])) + bits("0" * blocks)
        again = segment(b"\xda", bytes([1, 1, 0, 1, 63, 0x10]))
        again += bits(("0" + "1" * 14) * -(-blocks // 32767))
        body = again * scans
    else:
        part = bits("00" * blocks)
        body = b"".join(
            segment(b"\xda", bytes([1, number % 3 + 1, 0, 0, 63, 0])) + part
            for number in range(scans)
        )
    return b"\xff\xd8" + head + body + b"\xff\xd9"


def riff(*chunks):
    body = b"WEBP"
    for name, content in chunks:
        body += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def u24(number):
    return struct.pack("<I", number)[:3]


def bombs(large):
    """Small files that claim, or unpack to, very much: name -> (bytes, reasons for a refusal).

    Without reasons it is a picture, whatever else stands beside it. `large` names those of LARGE
    that come as large as is decoded, and a row larger.
    """
    whole, zeros = originals(), packed_zeros(128 << 20)
    size, data = (30_000, 30_000), chunk(b"IDAT", zlib.compress(bytes(1000)))
    pixels = {"image_pixels"}
    damaged = {"image_undecodable", "image_format"}
    jpeg = bytearray(whole["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    row = chunk(b"IDAT", zlib.compress(bytes(31)) * 1)
    canvas = u24(16_383) + u24(16_383)
    frames = [(b"ANMF", u24(0) * 2 + u24(0) * 2 + u24(1) + b"\0" + b"VP8L" + bytes(8))] * 2000
    gif = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6)
    piece = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    small = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    bmp = bytearray(whole["bmp"])
    bmp[18:26] = struct.pack("<ii", 1 << 30, 1 << 30)
    noise = np.random.Generator(np.random.Philox(key=9)).bytes(60_000)
    jpeg_with = whole["jpeg"]
    return {
        "png of 30,000 x 30,000": (png(*size, data), pixels),
        "png of 2^31 - 1 squared": (png(2**31 - 1, 2**31 - 1, data), pixels | damaged),
        "png of a very long row": (png(2**31 - 1, 1, data, depth=1, colour=0), pixels | damaged),
        "png, text of 128 MB": (
            png(10, 1, chunk(b"zTXt", b"x\0\0" + zeros), row),
            damaged,
        ),
        "png, profile of 128 MB": (
            png(10, 1, chunk(b"iCCP", b"x\0\0" + zeros), row),
            set(),
        ),
        "png, a row that unpacks to 128 MB": (
            png(10, 1, chunk(b"IDAT", zeros)),
            set(),
        ),
        "jpeg of 65,535 squared": (bytes(jpeg), pixels),
        "jpeg, EXIF garbage": (
            jpeg_with[:2] + b"\xff\xe1\xff\xffExif\0\0" + noise[:65_527] + jpeg_with[2:],
            damaged,
        ),
        "jpeg, EXIF that points at itself": (
            with_exif(jpeg_with, b"II*\0\x08\0\0\0" + b"\x01\0\x69\x87\4\0\1\0\0\0\x08\0\0\0"),
            set(),
        ),
        "jpeg, ICC garbage": (
            jpeg_with[:2] + segment(b"\xe2", b"ICC_PROFILE\0\1\xff" + noise[:9000]) + jpeg_with[2:],
            set(),
        ),
        "gif of 65,535 squared": (gif + piece + b";", pixels),
        "gif of 20,000 frames": (small + piece * 20_000 + b";", set()),
        "webp of 16,384 squared": (
            riff((b"VP8X", b"\x02\0\0\0" + canvas), (b"ANIM", bytes(6)), *frames),
            pixels | damaged,
        ),
        "bmp of 2^30 squared": (bytes(bmp), pixels | damaged),
        "jpeg of 150 scans": (scanned_jpeg(2000, 150), {"image_scans"}),
        "jpeg of 13 scans, 50 megapixels": (scanned_jpeg(7094, 12), {"image_scans"}),
        "jpeg of 150 scans of a colour": (
            scanned_jpeg(200, 150, progressive=False),
            {"image_scans"},
        ),
        **{name: (LARGE[name](*LARGEST), set()) for name in large},
        **{
            f"{name}, a row too many": (LARGE[name](LARGEST[0], LARGEST[1] + 1), pixels)
            for name in large
        },
        "jpeg of 12 scans, 50 megapixels": (scanned_jpeg(7094, 11), set()),
        **avif_bombs(),
        **tiff_bombs(),
        **jpeg_2000_bombs(),
        **other_bombs(),
    }


def tiff(tags, body):
    """A little-endian TIFF: its body, at byte 8, and a directory of (tag, type, count, value)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)


def grey_tiff(size, body, *tags, compression=1, strip=(1, 8), rows=None):
    """A grey TIFF of one strip or, by its count and place, of many."""
    width, height = size
    strips = () if strip is None else ((273, 4, *strip), (278, 4, 1, rows or height))
    common = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression)]
    common += [
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        *strips,
        (279, 4, strip[0] if strip else 1, len(body)),
    ]
    return tiff(sorted([*common, *tags]), body)


def tiff_bombs():
    zeros, parts = packed_zeros(1 << 28), {"image_parts"}
    tiles = ((322, 4, 1, 1 << 14), (323, 4, 1, 1 << 14), (324, 4, 1, 8))
    places = struct.pack("<I", 8) * 100_000
    at, pixels = 8 + 90_000, bytes(90_000)
    scans = scanned_jpeg(2000, 150)
    many = b"".join(struct.pack("<HHII", 40_000 + i, 1, 1 << 20, 8) for i in range(20_000))
    return {
        "tiff, a tile of 16,384 squared": (
            grey_tiff((16, 16), zeros, *tiles, compression=8, strip=None),
            {"image_pixels"},
        ),
        "tiff of 100,000 strips": (
            grey_tiff((1, 100_000), bytes(at - 8) + places, strip=(100_000, at), rows=1),
            parts,
        ),
        "tiff of 100,000 strips in one place": (
            grey_tiff((300, 300), pixels + places, strip=(100_000, at), rows=299),
            parts,
        ),
        "tiff of 30,000 strips of a tile each": (
            grey_tiff((300, 300), pixels + places, strip=(30_000, at), rows=299),
            parts,
        ),
        "tiff of 30,000 squared": (grey_tiff((30_000, 30_000), bytes(9)), {"image_pixels"}),
        "tiff, JPEG of 8 megapixels": (
            grey_tiff((4000, 2000), scans, compression=7),
            {"image_pixels"},
        ),
        "tiff, 20,000 tags of a megabyte": (
            b"II*\0" + struct.pack("<I", 8 + (1 << 20)) + bytes(1 << 20)
            + struct.pack("<H", 20_000) + many + bytes(4),
            parts,
        ),
        "tiff, a tag twice": (grey_tiff((9, 9), bytes(81), (256, 4, 1, 1 << 20)), parts),
    }  # fmt: skip


def codestream(
    size,
    *,
    tile=None,
    colours=1,
    layers=1,
    levels=5,
    block=4,
    precincts=b"",
    more=b"",
    in_part=b"",
    at=0,
):
    """A JPEG 2000 codestream of empty packets."""

    def marked(marker, content):
        return struct.pack(">HH", marker, len(content) + 2) + content

    width, height = size
    place = (width + at, height + at, at, at, *(tile or (width + at, height + at)), 0, 0)
    sizes = struct.pack(">H8IH", 0, *place, colours) + b"\x07\1\1" * colours
    style = struct.pack(">BBHB", bool(precincts), 0, layers, 0)
    codes = style + bytes([levels, block, block, 0, 1]) + precincts
    steps = b"\x40" + bytes([8 << 3]) * (3 * levels + 1)
    head = marked(0xFF51, sizes) + marked(0xFF52, codes) + marked(0xFF5C, steps) + more
    body = in_part + b"\xff\x93" + bytes(100)
    part = struct.pack(">HHHIBB", 0xFF90, 10, 0, 12 + len(body), 0, 1) + body
    return b"\xff\x4f" + head + part + b"\xff\xd9"


@functools.cache
def tiles_in_boxes():
    """JP2 files of 4,225 tiles, by what the box of their codes says of its length."""
    out = io.BytesIO()
    Image.new("L", (65, 65)).save(out, "JPEG2000", tile_size=(1, 1))
    data = out.getvalue()
    place = data.index(b"jp2c") - 4
    head, codes = data[:place], data[place + 8 :]
    lengths = {
        "its own": data[place : place + 8],
        "4": struct.pack(">I4s", 4, b"jp2c"),
        "4, at length": struct.pack(">I4sQ", 1, b"jp2c", 4),
    }
    return {f"jpeg 2000, a box of {n}": head + length + codes for n, length in lengths.items()}


def jpeg_2000_bombs():
    parts = {"image_parts"}
    tiny = {"levels": 0, "precincts": b"\0"}
    in_jp2 = bytearray(originals()["jpeg 2000"])
    place = in_jp2.index(b"\xff\x51") + 6
    in_jp2[place : place + 8] = struct.pack(">II", 30_000, 30_000)
    codes = struct.pack(">HHBBHBBBBBBB", 0xFF52, 13, 1, 0, 1, 0, 0, 4, 4, 0, 1, 0)
    colour = struct.pack(">HHBBBBBBBB", 0xFF53, 10, 0, 1, 0, 4, 4, 0, 1, 0)
    return {
        **{name: (data, parts) for name, data in tiles_in_boxes().items()},
        "jpeg 2000 of 30,000 squared": (codestream((30_000, 30_000)), {"image_pixels"}),
        "jpeg 2000 of 8 megapixels": (codestream((4096, 2048), colours=4), set()),
        "jpeg 2000 of 9 megapixels": (codestream((4096, 2200)), {"image_pixels"}),
        "jpeg 2000, a box that says less": (bytes(in_jp2), {"image_pixels"}),
        "jpeg 2000 of 65,025 tiles": (codestream((255, 255), tile=(1, 1), colours=4), parts),
        "jpeg 2000, far from its tiles": (codestream((9, 9), tile=(1, 1), at=1 << 30), parts),
        "jpeg 2000 of a million precincts": (codestream((1024, 1024), **tiny), parts),
        "jpeg 2000, those of a part": (codestream((1024, 1024), levels=0, in_part=codes), parts),
        "jpeg 2000, those of a colour": (codestream((1024, 1024), levels=0, more=colour), parts),
        "jpeg 2000 of 65,535 layers": (codestream((512, 512), layers=65_535), parts),
        "jpeg 2000, blocks of 4 x 4": (codestream((2048, 2048), block=0), parts),
        "jpeg 2000 of 16,000 colours": (codestream((64, 64), colours=16_000), parts),
    }


def box(kind, content):
    return struct.pack(">I4s", len(content) + 8, kind) + content


def sequence_of(width, height, *, short=True, timed=False):
    """A sequence header of AV1, and a frame that ends: what a decoder knows before it begins."""
    bits = "00011" + "00000" if short else "00000"  # short: a still picture of level 0
    if not short:  # no times, or with a model of the decoder; one operating point
        bits += "1" + "0" * 64 + "0" + "1" + "01001" + "0" * 42 if timed else "0"
        bits += "0" + "00000" + "0" * 12 + "01000" + "0" + ("1" + "0" * 21 if timed else "")
    bits += "1111" * 2 + f"{width - 1:016b}{height - 1:016b}" + "0" * 16
    bits += "0" * (-len(bits) % 8)
    return unit(1, int(bits, 2).to_bytes(len(bits) // 8, "big"))


def unit(kind, content):
    return bytes([kind << 3 | 2, len(content)]) + content


def avif(*codes, size=(16, 16), extents=1, stored=False, typed=b"av01"):
    """An AVIF of several items of AV1, each of which its boxes call small."""
    frame = struct.pack(">4xII", *size)
    entry = b"".join(
        box(b"infe", struct.pack(">B3xHH4sx", 2, number, 0, typed)) for number in range(len(codes))
    )
    items = box(b"iinf", struct.pack(">B3xH", 0, len(codes)) + entry)

    def places(start):
        found, at = b"", start
        for number, code in enumerate(codes):
            found += struct.pack(">HHHH", number, int(stored), 0, extents)
            found += struct.pack(">II", at, len(code)) * extents
            at += len(code)
        return box(b"iloc", struct.pack(">B3xHH", 1, 0x4400, len(codes)) + found)

    def whole(start):
        data = box(b"idat", b"".join(codes)) if stored else b""
        inside = box(b"iprp", box(b"ipco", box(b"ispe", frame))) + items + places(start) + data
        return box(b"ftyp", b"avif" + bytes(4) + b"avifmif1") + box(b"meta", bytes(4) + inside)

    if stored:
        return whole(0)
    return whole(len(whole(0)) + 8) + box(b"mdat", b"".join(codes))


def moving_avif(code):
    """An animation whose first sample is this."""

    def whole(at):
        tables = box(b"stsz", struct.pack(">4xII", len(code), 1))
        tables += box(b"stco", struct.pack(">4xII", 1, at))
        inside = box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", tables))))
        return box(b"ftyp", b"avis" + bytes(4) + b"avismsf1") + box(b"moov", inside)

    return whole(len(whole(0)) + 8) + box(b"mdat", code)


def avif_bombs():
    pixels, parts = {"image_pixels"}, {"image_parts"}
    large, frame = sequence_of(16_384, 16_384), unit(6, bytes(9))
    limit = sequence_of(7680, 4320)
    nothing = avif(*[limit] * 500, extents=2).replace(b"\x44\0\x01\xf4", b"\0\0\x7f\xff")
    return {
        "avif whose codes are of 16,384 squared": (avif(large + frame), pixels),
        "avif, those of its transparency": (avif(sequence_of(9, 9) + frame, large + frame), pixels),
        "avif, in its boxes": (avif(large + frame, stored=True), pixels),
        "avif, a long header": (avif(sequence_of(9000, 9000, short=False)), pixels),
        "avif, with times": (avif(sequence_of(9000, 9000, short=False, timed=True)), pixels),
        "avif, behind another unit": (avif(unit(2, b"") + unit(5, bytes(99)) + large), pixels),
        "avif of 30 items": (avif(*[limit + frame] * 30), pixels),
        "avif of 2,000 frames in one": (avif(limit + frame * 2000), parts),
        "avif that names itself 2,000 times": (avif(large + bytes(99), extents=2000), parts),
        "avif of 40,000 units": (avif(limit + unit(2, b"") * 40_000), parts),
        "avif whose extents are of no bytes": (nothing, {"image_undecodable"}),
        "avif that moves": (moving_avif(large + frame), pixels),
        "avif without a sequence header": (avif(frame), {"image_undecodable"}),
        "avif without items": (avif(large, typed=b"Exif"), {"image_undecodable"}),
    }


def other_bombs():
    pixels = {"image_pixels"}
    return {
        "ppm of 30,000 squared": (b"P6 30000 30000 255\n" + bytes(99), pixels),
        "ppm in words, 2 megapixels": (b"P3 2000 1000 255\n" + b"0 " * 99, pixels),
        "ppm of 200 greys, 2 megapixels": (b"P5 2000 1000 200\n" + bytes(99), pixels),
    }


LARGEST = 7680, 4320  # what is decoded at most, but of JPEGs
_KEY, _PALETTE = chunk(b"tRNS", b"\0\0"), chunk(b"PLTE", b"\1\2\3") + chunk(b"tRNS", b"\7")
LARGE = {
    "png, rgba": functools.partial(empty_png, colour=6),
    "png, rgba of 16 bits": functools.partial(empty_png, colour=6, depth=16),
    "png, grey and alpha": functools.partial(empty_png, colour=4),
    "png, grey of 16 bits": functools.partial(empty_png, colour=0, depth=16),
    "png, grey of 16 bits and a key": lambda *size: empty_png(*size, _KEY, colour=0, depth=16),
    "png, palette": lambda *size: empty_png(*size, _PALETTE, colour=3),
    "webp": empty_webp,
}


def segment(marker, content):
    return b"\xff" + marker + struct.pack(">H", len(content) + 2) + content


def with_exif(jpeg, block):
    return jpeg[:2] + segment(b"\xe1", b"Exif\0\0" + block) + jpeg[2:]
