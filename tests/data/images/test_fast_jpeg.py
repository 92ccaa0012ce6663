"""The fast path beside the reference: the same part of the picture, nearly the same pixels."""

import io
import sys

import numpy as np
import pytest
from counting import counted_calls
from PIL import Image

from clipjax.data.images.fast_jpeg import FastJpeg
from clipjax.data.source import SampleError
from clipjax.data.transforms import RandomResizedCrop, ResizeAndCrop

SIZES = [(500, 375), (341, 256), (1280, 854), (300, 900), (100, 80), (97, 1031)]


def picture(width, height, seed=0, mode="RGB"):
    """Edges and noise at several scales, as photographs have them."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells, weight in ((4, 0.5), (16, 0.35), (64, 0.15)):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)) * weight
    return Image.fromarray(total.astype(np.uint8)).convert(mode)


def encode(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **({"quality": 95} if format == "JPEG" else {}), **options)
    return file.getvalue()


def transform(make, decode, data, seed=0, **options):
    result = make(image_size=224, decode=decode, **options)(
        {"image": data, "text": "", "key": ""}, np.random.default_rng(seed)
    )["image"]
    assert result.shape == (224, 224, 3) and result.dtype == np.uint8
    return result


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


CASES = [
    (RandomResizedCrop, {"scale": (0.9, 1.0)}),
    (RandomResizedCrop, {"scale": (0.05, 0.3)}),
    (ResizeAndCrop, {"resize": "shortest"}),
    (ResizeAndCrop, {"resize": "squash"}),
]


@pytest.mark.parametrize(("make", "options"), CASES)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_near_the_reference(make, options, size):
    data = encode(picture(*size))
    reference = transform(make, "reference", data, **options)
    fast = transform(make, "fast", data, **options)
    assert 0 < difference(fast, reference) < 1.5
    # The measure sees a shift of two pixels, and another picture.
    assert difference(np.roll(fast, 2, axis=1), reference) > 1.5
    assert difference(transform(make, "fast", encode(picture(*size, 1)), **options), reference) > 10


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_a_scaled_decode_keeps_the_crop_above_the_target(subsampling):
    data = encode(picture(1000, 1000), subsampling=subsampling)
    jpeg = FastJpeg.open(data)
    assert (jpeg.width, jpeg.height) == (1000, 1000)
    part = jpeg.crop((100, 100, 996, 996), 224)  # 896 pixels: a quarter is 224
    whole = Image.open(io.BytesIO(data)).resize((224, 224), box=(100, 100, 996, 996))
    assert difference(part, np.asarray(whole)) < 1.5


def test_a_scaled_decode_is_not_stretched_to_whole_pixels():
    data = encode(picture(993, 1001))  # a quarter is 248.25 x 250.25, decoded 249 x 251
    whole = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BICUBIC)
    part = FastJpeg.open(data).crop((0, 0, 993, 1001), 224)
    assert difference(part, np.asarray(whole)) < 1  # 1.7 with the last pixel counted as whole


def test_grey_has_three_channels():
    data = encode(picture(400, 300, mode="L"))
    fast = transform(ResizeAndCrop, "fast", data)
    assert FastJpeg.open(data) is not None
    assert difference(fast, transform(ResizeAndCrop, "reference", data)) < 1.5
    assert np.ptp(fast, axis=2).max() == 0


def turned(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(400, 300), exif=exif)


def turned_by_xmp(orientation=6):
    block = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    return encode(picture(400, 300), xmp=block.encode())


def padded(data):
    """Padding in front of a block, and a scan where a reader that knows no padding would look."""
    place = data.index(b"\xff\xe1")
    data = data[:place] + b"\xff" + data[place:]
    scan = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    assert len(data) < scan
    return data.ljust(scan, b"\0") + b"\xff\xda"


def with_sampling(data, factors):
    """Forged: the header alone says so."""
    data, place = bytearray(data), data.index(b"\xff\xc0")
    data[place + 11] = factors
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        encode(picture(400, 300, mode="CMYK")),
        encode(picture(400, 300), "PNG"),
        encode(picture(400, 300), "WEBP"),
        *(turned(orientation) for orientation in range(2, 9)),
        *(turned_by_xmp(orientation) for orientation in range(2, 9)),
        padded(turned()),
    ],
    ids=[
        *("cmyk", "png", "webp"),
        *(f"{block}-{i}" for block in ("exif", "xmp") for i in range(2, 9)),
        "padded",
    ],
)
def test_what_it_does_not_know_goes_by_the_reference(data):
    assert FastJpeg.open(data) is None
    for make, options in CASES:
        fast = transform(make, "fast", data, **options)
        assert np.array_equal(fast, transform(make, "reference", data, **options))


def test_an_upright_block_is_no_obstacle():
    for data in (turned(1), turned_by_xmp(1), encode(picture(400, 300), xmp=b"<x:xmpmeta/>")):
        assert FastJpeg.open(data) is not None


def test_a_rare_subsampling_goes_by_the_reference():
    data = encode(picture(400, 300), subsampling="4:4:4")
    assert FastJpeg.open(with_sampling(data, 0x11)) is not None
    assert FastJpeg.open(with_sampling(data, 0x14)) is None  # 4:4:1, which has no name
    assert FastJpeg.open(with_sampling(data, 0x31)) is None


def with_zeros_at_its_end():
    data = encode(picture(400, 300))
    return data[:-2] + bytes(6) + data[-2:]


def with_a_wrong_restart():
    data = encode(picture(400, 300), restart_marker_blocks=4)
    return data.replace(b"\xff\xd2", b"\xff\xd5", 1)


@pytest.mark.parametrize("data", [with_zeros_at_its_end(), with_a_wrong_restart()])
def test_what_the_reference_reads_of_a_damaged_picture_is_read(data):
    assert FastJpeg.open(data).crop((0, 0, 400, 300), 224) is None
    for make, options in CASES:
        fast = transform(make, "fast", data, **options)
        assert np.array_equal(fast, transform(make, "reference", data, **options))


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (3, 2)])
def test_odd_sizes(size):
    data = encode(picture(*size))
    for make, options in CASES:
        fast = transform(make, "fast", data, **options)
        assert difference(fast, transform(make, "reference", data, **options)) < 6


def test_too_many_pixels_are_refused_before_decoding():
    data = bytearray(encode(picture(64, 64)))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(SampleError, match="60000 x 60000"):
        transform(ResizeAndCrop, "fast", bytes(data))


def test_a_truncated_file_is_refused():
    data = encode(picture(400, 300))
    with pytest.raises(SampleError):
        transform(ResizeAndCrop, "fast", data[: len(data) // 2])


MOST_CALLS = 5_000  # of functions, for a file


def mutate(data, rng):
    data = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data)


def fuzz(count):
    rng = np.random.default_rng(7)
    originals = [encode(picture(90, 70)), encode(picture(60, 80, mode="L")), turned()]
    refused, most = 0, 0
    for number in range(count):
        data = mutate(originals[number % 3], rng)
        with counted_calls() as calls:
            try:
                transform(RandomResizedCrop, "fast", data, seed=number)
            except SampleError:
                refused += 1
        most = max(most, calls.number)
    return refused, most


def test_damaged_files_are_refused_or_read():
    refused, most = fuzz(200)
    assert 0 < refused < 200 and most < MOST_CALLS


@pytest.mark.nightly
def test_ten_thousand_damaged_files():
    refused, most = fuzz(10_000)
    assert 0 < refused < 10_000 and most < MOST_CALLS


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "clipjax.data.images.fast_jpeg")
    with pytest.raises(ValueError, match=r"clipjax\[fast\]"):
        RandomResizedCrop(image_size=224, decode="fast")
    with pytest.raises(ValueError, match="allowed are reference, fast"):
        RandomResizedCrop(image_size=224, decode="quick")
