"""Pictures of odd sizes, modes and orientations, for the preprocessing and its references."""

import io

import numpy as np
from PIL import Image

SIZE = 24
# Height and width. The side that is cropped is longer than SIZE by each of 0..7 pixels and more,
# so that the offset of the crop is rounded in each way.
SHAPES = (
    *((1, 1), (1, 3000), (3000, 1), (1, 2), (2, 3), (3, 3), (3, 50), (5, 5), (7, 9), (17, 401)),
    *((23, 23), (23, 24), (24, 24), (25, 25), (24, 25), (24, 26), (24, 27), (24, 28), (24, 29)),
    *((24, 30), (24, 31), (25, 24), (26, 24), (27, 24), (28, 24), (29, 24), (30, 24), (31, 24)),
    *((37, 53), (47, 24), (48, 24), (49, 25), (48, 130), (61, 100), (97, 31), (100, 61)),
    *((200, 31), (333, 500), (375, 499), (500, 375), (24, 1000), (700, 24), (1000, 7)),
)
# At the size that ALIGN was published with.
ALIGN_SHAPES = ((1, 1), (346, 346), (289, 289), (500, 333), (347, 345), (40, 900))
ODD = (37, 53)
ORIENTATIONS = {
    1: (),
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_90,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_270,),
}


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    bits = np.random.Philox(key=[height, width + 10_000 * channels])
    values = bits.random_raw(height * width * channels) & 0xFF
    return values.astype(np.uint8).reshape(height, width, channels)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _exif(orientation: int) -> bytes:
    """A picture that is upright once its EXIF orientation is applied."""
    image = Image.fromarray(picture(*ODD))
    for method in ORIENTATIONS[orientation]:
        image = image.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


def _cmyk() -> tuple[bytes, np.ndarray]:
    """Of one colour: what a JPEG holds of more depends on its encoder."""
    ink = (200, 30, 90, 40)
    data = encode(Image.new("CMYK", ODD[::-1], ink), "JPEG", quality=100)
    light = 255 - ink[3]
    rgb = [round(light - c * light / 255) for c in ink[:3]]
    return data, np.zeros((*ODD, 3), np.uint8) + np.array(rgb, np.uint8)


def modes() -> dict[str, tuple[bytes, np.ndarray]]:
    """Name -> (encoded picture, the RGB that the table of modes makes of it, on white)."""
    rgb, grey = picture(*ODD), picture(*ODD, 1)[..., 0]
    alpha = np.where(picture(*ODD, 2)[..., :1] < 128, 0, 255).astype(np.uint8)
    deep = grey.astype(np.uint16) * 256 + grey[::-1]
    palette = Image.fromarray(grey % 61, "P")
    palette.putpalette(picture(61, 1).tobytes())
    keyed = np.where(alpha == 0, np.uint8(20), rgb)
    white = np.uint8(255)
    found = {
        "rgb": (encode(Image.fromarray(rgb)), rgb),
        "grey": (encode(Image.fromarray(grey)), np.stack([grey] * 3, -1)),
        "one bit": (
            encode(Image.fromarray((grey > 99).astype(np.uint8) * 255).convert("1", dither=0)),
            np.stack([(grey > 99).astype(np.uint8) * 255] * 3, -1),
        ),
        "16 bits": (encode(Image.fromarray(deep)), np.stack([grey] * 3, -1)),
        "rgba": (
            encode(Image.fromarray(np.concatenate([rgb, alpha], -1))),
            np.where(alpha == 0, white, rgb),
        ),
        "grey alpha": (
            encode(Image.fromarray(np.concatenate([grey[..., None], alpha], -1))),
            np.where(alpha == 0, white, grey[..., None]) + np.zeros(3, np.uint8),
        ),
        "palette": (encode(palette), np.asarray(palette.convert("RGB"))),
        "palette transparent": (
            encode(palette, transparency=7),
            np.where(
                np.asarray(palette)[..., None] == 7, white, np.asarray(palette.convert("RGB"))
            ),
        ),
        "color key": (
            encode(Image.fromarray(keyed), transparency=(20, 20, 20)),
            np.where((keyed == 20).all(-1, keepdims=True), white, keyed),
        ),
        "webp": (encode(Image.fromarray(rgb), "WEBP", lossless=True), rgb),
        "bmp": (encode(Image.fromarray(rgb), "BMP"), rgb),
    }
    found["cmyk"] = _cmyk()
    return found | {f"exif {number}": (_exif(number), rgb) for number in ORIENTATIONS}
