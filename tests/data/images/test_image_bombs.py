"""Small files that claim, or unpack to, very much: refused at once, or decoded at a known cost."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from broken_pictures import LARGE, LARGEST, bombs, empty_png, scanned_jpeg
from counting import counted_calls
from PIL import Image, ImageFile
from test_image_faults import outcome

from clipjax.data import SampleError, decode_image
from clipjax.data.images import fast_jpeg
from clipjax.data.images import limits as image_limits
from clipjax.data.images import preprocess as module
from clipjax.data.transforms import RandomResizedCrop

# Pixels that a decoder goes over, once a scan: 10 scans of the largest JPEG.
REFUSED_PIXELS, DECODED_PIXELS = 1 << 20, 10 * 9600 * 6400
MOST_CALLS = 1_000_000  # Pillow takes 36 for each tag of a TIFF
REFUSED_MB, DECODED_MB = 64, 512
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def memory_mb(field):
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


@contextlib.contextmanager
def decoded_pixels(data):
    """A list of the pixels that each decoder goes over inside, once a scan."""
    load, sizes = ImageFile.ImageFile.load, []
    scans = data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 1

    def counting(image):
        if image.tile:  # what is loaded has none
            sizes.append(image.width * image.height * scans)
        return load(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", counting)
        yield sizes


def cost(decode, data):
    """What became of a picture, pixels gone over, calls made, and the most memory, in MB.

    What else the process takes meanwhile, libraries that come back into memory, say, only adds to
    its peak: the least of three is the picture's.
    """
    found = cost_once(decode, data)
    for _ in range(2):
        if found[3] > (DECODED_MB if found[0] == "decoded" else REFUSED_MB):
            found = min(found, cost_once(decode, data), key=lambda one: one[3])
    return found


def cost_once(decode, data):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_mb("VmRSS")
    with decoded_pixels(data) as sizes, counted_calls() as calls:
        found = outcome(decode, data)
    return found, sum(sizes), calls.number, memory_mb("VmHWM") - before


def check(name, data, reasons, decode=decode_image):
    found, pixels, calls, memory = cost(decode, data)
    assert found in (reasons or {"decoded", "image_undecodable"}), name
    assert pixels <= (DECODED_PIXELS if found == "decoded" else REFUSED_PIXELS), (name, pixels)
    assert calls < MOST_CALLS, (name, calls)
    assert memory < (DECODED_MB if found == "decoded" else REFUSED_MB), (name, memory)
    return found


needs_peaks = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is not told here"
)


FEW = ("png, palette", "webp")  # of the largest that are decoded


@needs_peaks
@pytest.mark.parametrize(
    "large", [FEW, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_bombs(large):
    found = {k: check(k, *bomb) for k, bomb in bombs(large).items()}
    assert all(found[name] == "decoded" for name in large)
    assert found["jpeg of 12 scans, 50 megapixels"] == "decoded"


@needs_peaks
def test_the_oracle_sees_what_costs_too_much(monkeypatch):
    """Negative controls: bombs without the checks, very many calls, a copy too many."""
    monkeypatch.setattr(module, "check_scans", lambda data, pixels: None)
    with pytest.raises(AssertionError, match="bomb"):
        check("bomb", scanned_jpeg(2100, 150), set())
    monkeypatch.setattr(module, "pixel_limit", lambda image: 1 << 26)
    data = LARGE["webp"](LARGEST[0], LARGEST[1] * 3 // 2)
    found, _, _, memory = cost_once(decode_image, data)
    assert found == "decoded" and memory > DECODED_MB

    def slow(data):
        for _ in range(MOST_CALLS):
            data.index(data)
        return decode_image(data)

    with pytest.raises(AssertionError, match="some"):
        check("some", empty_png(40, 30), set(), slow)

    def with_floats(data):
        image = decode_image(data)
        return Image.fromarray(np.asarray(image).astype(np.float64).astype(np.uint8))

    assert cost(with_floats, empty_png(4000, 2000))[3] > REFUSED_MB * 2


def jpeg(**options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    out = io.BytesIO()
    mode = options.pop("mode", "RGB")
    image.convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


SCANS = {
    "sequential": (jpeg(), 1),
    "grey": (jpeg(mode="L"), 1),
    "restarts": (jpeg(restart_marker_blocks=1), 1),
    "progressive": (jpeg(progressive=True), 10),
    "progressive cmyk": (jpeg(mode="CMYK", progressive=True), 18),
    "a colour a scan": (scanned_jpeg(40, 3, progressive=False), 3),
    "many": (scanned_jpeg(40, 500), 101),
    # What is no scan of the picture itself: in its description, and behind its end.
    "thumbnail": (jpeg(exif=b"Exif\0\0" + jpeg()[:20_000] + b"\xff\xda" * 200), 1),
    "motion photo": (jpeg(progressive=True) + b"\xff\xda" * 1000, 10),
    "cut": (jpeg(progressive=True)[:3000], None),
    "nothing": (b"\xff\xd8\xff\xda", 1),
}


@pytest.mark.parametrize("name", SCANS)
def test_scans_are_counted_as_a_decoder_reads_them(name):
    data, expected = SCANS[name]
    found = image_limits.count_scans(data, 101)
    assert found == expected or (expected is None and found < 10)


def test_many_scans_are_refused_by_both_decoders():
    data = scanned_jpeg(40, 101)
    assert fast_jpeg.FastJpeg.open(scanned_jpeg(40, 90)) is not None
    example = {"image": data, "text": "", "key": ""}
    for decode in ("reference", "fast"):
        with pytest.raises(SampleError, match="more than 100 scans") as caught:
            RandomResizedCrop(16, decode=decode)(example, np.random.default_rng(0))
        assert caught.value.reason == "image_scans"


@pytest.mark.parametrize("name", ["thumbnail", "motion photo", "restarts"])
def test_what_is_behind_the_end_or_in_a_thumbnail_is_no_reason(name):
    assert outcome(decode_image, SCANS[name][0]) == "decoded"


def test_a_jpeg_may_have_more_pixels():
    photo, ink = (Image.new(mode, (1, 1)) for mode in ("RGB", "CMYK"))
    photo.format = ink.format = "JPEG"
    assert image_limits.pixel_limit(photo) == 9600 * 6400
    ink_scans, most = 18, image_limits.MAX_SCANNED_PIXELS
    assert ink_scans <= most // image_limits.pixel_limit(ink)  # what libjpeg writes is read
    assert most // image_limits.pixel_limit(photo) >= 10
    assert image_limits.pixel_limit(ink) == image_limits.pixel_limit(Image.new("RGB", (1, 1)))
    assert LARGEST[0] * LARGEST[1] == image_limits.MAX_PIXELS
