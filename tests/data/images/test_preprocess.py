import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipjax.data import ImageError, Preprocess, decode_image
from clipjax.data.images import limits
from clipjax.data.images import preprocess as module
from clipjax.data.images.preprocess import as_pil, to_rgb

GOLDEN = np.load(Path(__file__).parents[2] / "golden/data/preprocess.npz")


def picture(height, width):
    rng = np.random.Generator(np.random.Philox(key=[height, width]))
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def encode(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def golden_differences(preprocess_of):
    worst = {}
    for name in GOLDEN.files:
        resize, kernel, shape = name.split("/")
        image = picture(*map(int, shape.split("x")))
        out = preprocess_of(resize, kernel)(image).astype(int)
        worst[name] = np.abs(out - GOLDEN[name]).max()
    return worst


def test_pixels_are_the_published_preprocessing_s():
    worst = golden_differences(lambda r, k: Preprocess(24, resize=r, interpolation=k))
    assert len(worst) == 32 and max(worst.values()) == 0, worst


@pytest.mark.parametrize("fault", ["kernel", "offset", "resize"])
def test_the_goldens_see_a_fault(fault, monkeypatch):
    if fault == "offset":
        monkeypatch.setattr(module, "round", lambda x: int(x) + 1, raising=False)
    swap = {"bicubic": "bilinear", "bilinear": "bicubic", "shortest": "squash"}
    worst = golden_differences(
        lambda r, k: Preprocess(
            24,
            resize=swap.get(r, "shortest") if fault == "resize" else r,
            interpolation=swap[k] if fault == "kernel" else k,
        )
    )
    assert max(worst.values()) > 5


def test_a_long_strip_is_resampled_without_growing(monkeypatch):
    assert module.MAX_RESIZED_PIXELS < 64 * 64 * 20_000
    assert Preprocess(64)(Image.fromarray(picture(1, 20_000))).shape == (64, 64, 3)
    # The same pixels as by the plain path, where that is affordable.
    sizes, resize = [], Image.Image.resize

    def noted(image, size, *args, **options):
        sizes.append(size)
        return resize(image, size, *args, **options)

    for shape in ((10, 200), (10, 203), (201, 10), (1, 900), (997, 3), (5, 403)):
        image = picture(*shape)
        plain = Preprocess(16, crop_fraction=0.8)(image).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(module, "MAX_RESIZED_PIXELS", 0)
            patch.setattr(
                Image.Image, "resize", lambda *a, **k: sizes.append(a[1]) or resize(*a, **k)
            )
            strip = Preprocess(16, crop_fraction=0.8)(image)
        np.testing.assert_allclose(strip, plain, atol=1)
    assert max(map(max, sizes)) < 40
    assert Preprocess(8)(Image.fromarray(picture(1, 1))).shape == (8, 8, 3)


def test_the_part_that_is_kept():
    image = picture(50, 90)
    whole = Preprocess(32, resize="squash")(image)
    np.testing.assert_array_equal(
        Preprocess(28, resize="squash", crop_fraction=0.875)(image), whole[2:30, 2:30]
    )
    resized = np.asarray(Image.fromarray(image).resize((57, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Preprocess(28, crop_fraction=0.875)(image), resized[2:30, 14:42])


def test_from_the_spec_of_a_model():
    fields = {"resize": "squash", "interpolation": "bilinear", "mean": (0,) * 3, "std": (1,) * 3}
    assert Preprocess.from_spec({"image_size": 8, "preprocess": fields}) == Preprocess(
        8, "squash", "bilinear"
    )
    half = Preprocess.from_spec({"image_size": 8, "preprocess": {**fields, "crop_fraction": 0.5}})
    assert half.crop_fraction == 0.5
    for change, message in (
        ({"crop": 0.5}, r"preprocess\.crop is not known; allowed are mean, std, crop_fraction"),
        ({"crop_fraction": 1.5}, r"crop_fraction is 1\.5"),
        ({"resize": "crop"}, "resize is 'crop'"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocess.from_spec({"image_size": 8, "preprocess": {**fields, **change}})
    del fields["interpolation"]
    with pytest.raises(ValueError, match="has no interpolation"):
        Preprocess.from_spec({"image_size": 8, "preprocess": fields})


RAMP = (np.arange(64 * 4).reshape(4, 64) * 256).astype(np.uint16)


def sixteen_bits(**options):
    return encode(Image.fromarray(RAMP), **options)


def palette(transparent):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return encode(image, **({"transparency": 1} if transparent else {}))


def cmyk():
    return encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)


def animated():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


# bytes -> RGB of the pixel at (0, 0) and at the last place, on white
MODES = {
    "rgb": (encode(Image.new("RGB", (2, 2), (1, 2, 3))), (1, 2, 3), (1, 2, 3)),
    "grey": (encode(Image.new("L", (2, 2), 77)), (77,) * 3, (77,) * 3),
    "one bit": (encode(Image.new("1", (2, 2), 1)), (255,) * 3, (255,) * 3),
    "16 bits": (sixteen_bits(), (0,) * 3, (255,) * 3),
    "rgba": (encode(Image.new("RGBA", (2, 2), (9, 8, 7, 0))), (255,) * 3, (255,) * 3),
    "half": (encode(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), (127,) * 3, (127,) * 3),
    "grey alpha": (encode(Image.new("LA", (2, 2), (0, 0))), (255,) * 3, (255,) * 3),
    "palette": (palette(False), (255, 0, 0), (0, 0, 255)),
    "palette transparent": (palette(True), (255, 0, 0), (255,) * 3),
    "color key": (
        encode(Image.new("RGB", (2, 2), (5, 5, 5)), transparency=(5, 5, 5)),
        (255,) * 3,
        (255,) * 3,
    ),
    "cmyk": (cmyk(), (255, 0, 0), (255, 0, 0)),
    "animated": (animated(), (255, 0, 0), (255, 0, 0)),
    "webp": (encode(Image.new("RGB", (2, 2)), "WEBP", lossless=True), (0,) * 3, (0,) * 3),
    "bmp": (encode(Image.new("RGB", (2, 2), (9, 9, 9)), "BMP"), (9,) * 3, (9,) * 3),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(name):
    data, first, last = MODES[name]
    pixels = np.asarray(to_rgb(decode_image(data))).astype(int)
    np.testing.assert_allclose(pixels[0, 0], first, atol=2)
    np.testing.assert_allclose(pixels[-1, -1], last, atol=2)


def test_16_bits_keep_their_high_byte():
    out = np.asarray(decode_image(sixteen_bits()))[..., 0]
    np.testing.assert_array_equal(out, RAMP >> 8)
    # Negative control: what convert("RGB") alone makes of it.
    saturated = np.asarray(Image.open(io.BytesIO(sixteen_bits())).convert("L"))
    assert (saturated == 255).mean() > 0.9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = picture(6, 4)
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    stored = Image.fromarray(upright)
    if undo != 1:
        stored = stored.transpose(module.ORIENTATIONS[undo])
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(stored, exif=exif))
    np.testing.assert_array_equal(np.asarray(decoded), upright)


def bomb():
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    data = bytearray(encode(Image.new("L", (4, 4))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    crc = __import__("zlib").crc32(bytes(data[12:29]))
    data[29:33] = crc.to_bytes(4, "big")
    return bytes(data)


WHOLE = encode(Image.fromarray(picture(40, 40)), "JPEG")


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "image_empty"),
        (b"not an image", "image_format"),
        (encode(Image.new("RGB", (4, 4)), "ICO"), "image_format"),
        (WHOLE[: len(WHOLE) // 2], "image_undecodable"),
        (bomb(), "image_pixels"),
    ],
    ids=["empty", "text", "ico", "truncated", "bomb"],
)
def test_refused_with_a_reason(data, reason):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason == reason


def test_pixels_are_capped(monkeypatch):
    data = encode(Image.new("L", (100, 101)))
    monkeypatch.setattr(limits, "MAX_PIXELS", 10_100)
    decode_image(data)
    monkeypatch.setattr(limits, "MAX_PIXELS", 10_099)
    with pytest.raises(ImageError, match="100 x 101"):
        decode_image(data)


def test_mutated_images_never_crash():
    rng = np.random.Generator(np.random.Philox(key=3))
    seeds = [data for data, *_ in MODES.values()] + [WHOLE]
    for number in range(600):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(int(rng.integers(1, 5))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            image = decode_image(bytes(data[: int(rng.integers(len(data) + 1)) or None]))
        except ImageError as error:
            assert error.reason in (
                "image_format",
                "image_pixels",
                "image_undecodable",
            )
        else:
            assert image.mode in ("RGB", "RGBA")


def test_bad_options():
    for options in ({"size": 0}, {"size": 8, "resize": "crop"}, {"size": 8, "interpolation": "x"}):
        with pytest.raises(ValueError, match="preprocess"):
            Preprocess(**options)
    with pytest.raises(ImageError, match="float64"):
        Preprocess(8)(np.zeros((4, 4, 3)))


def test_a_pillow_image_is_what_its_file_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "TIFF"):
        data = encode(Image.fromarray(picture(20, 30)), kind, exif=exif)
        given = as_pil(Image.open(io.BytesIO(data)))
        assert given.size == (20, 30)
        np.testing.assert_array_equal(np.asarray(given), np.asarray(decode_image(data)))
        assert as_pil(given).size == as_pil(decode_image(data)).size == (20, 30)  # turned once
        as_stored = module.decode_as_open_clip(Image.open(io.BytesIO(data)))
        assert kind == "TIFF" or as_stored.size == (30, 20)  # of TIFF, Pillow itself turns


def test_numbers_without_a_range_are_refused():
    deep = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    for kind in ("PNG", "PPM"):  # of PPM, Pillow's mode is I
        opened = Image.open(io.BytesIO(encode(Image.fromarray(deep), kind)))
        np.testing.assert_array_equal(np.asarray(as_pil(opened))[..., 0], deep >> 8)
    for dtype in (np.int32, np.float32):
        with pytest.raises(ImageError, match=r"Pillow image are numbers .* nothing says which"):
            Preprocess(8)(Image.fromarray(picture(8, 8)[..., 0].astype(dtype)))


@pytest.mark.parametrize("pixels", module.PIXELS)
def test_what_is_no_picture_is_refused_with_its_cure(pixels):
    image, fit = picture(8, 8), Preprocess(8, pixels=pixels)
    for wrong in (image / 255, image[..., 0], image.transpose(2, 0, 1), image[:0]):
        with pytest.raises(ImageError, match=r"expected uint8 \[h, w, 3 or 4\]: of x in 0..1 give"):
            fit(wrong)
    with pytest.raises(ImageError, match="has 0 x 5 pixels"):
        fit(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match=r"is list, expected .* \(of another library's array np"):
        fit(image.tolist())
