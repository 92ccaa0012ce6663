"""`pixels="open_clip"` against what torchvision does, written here with Pillow alone."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipjax.data.images.preprocess import Preprocess

SIZE = 24


def torchvisions(data, *, squash=False):
    """Convert, Resize(24), CenterCrop(24) of torchvision on Pillow images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a palette has transparency
        image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    if squash:
        size = (SIZE, SIZE)
    elif width <= height:
        size = (SIZE, int(SIZE * height / width))
    else:
        size = (int(SIZE * width / height), SIZE)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - SIZE) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pictures():
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (40, 61, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    deep = Image.fromarray(rng.integers(0, 65536, (40, 61), dtype=np.uint16))
    palette = colours.convert("RGB").quantize(16)
    key = colours.getpixel((20, 20))[:3]
    clear = bytes([0, 128] + [255] * 14)
    return {
        "plain": encoded(colours.convert("RGB"), "PNG"),
        "turned": encoded(colours.convert("RGB"), "JPEG", exif=exif),
        "transparent": encoded(colours, "PNG"),
        "deep": encoded(deep, "PNG"),
        "palette": encoded(palette, "PNG"),
        "clear palette": encoded(palette, "PNG", transparency=clear),
        "colour key": encoded(colours.convert("RGB"), "PNG", transparency=key),
        "cmyk": encoded(colours.convert("CMYK"), "JPEG"),
        "grey": encoded(colours.convert("L"), "PNG"),
    }


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("kind", pictures())
def test_pixels_are_open_clips(kind, resize):
    data = pictures()[kind]
    theirs = torchvisions(data, squash=resize == "squash")
    found = Preprocess(SIZE, resize, pixels="open_clip")(data)
    np.testing.assert_array_equal(found, theirs)
    # Ours differ where it is said that they do, so the oracle can tell.
    ours = Preprocess(SIZE, resize)(data)
    assert np.array_equal(ours, theirs) is (kind in ("plain", "palette", "cmyk", "grey"))


def test_arrays_and_pillow_images_are_converted_alike():
    data = pictures()["transparent"]
    image = Image.open(io.BytesIO(data))
    preprocess = Preprocess(SIZE, pixels="open_clip")
    for form in (image, np.asarray(image)):
        np.testing.assert_array_equal(preprocess(form), torchvisions(data))
    with pytest.raises(ValueError, match="clipjax, open_clip"):
        Preprocess(SIZE, pixels="openai")


@pytest.mark.interop
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", pictures())
def test_the_oracle_is_torchvision(kind, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "golden" / "models")
    import torchvision_operators  # noqa: F401  # isort: skip  before torchvision
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.Compose(
        [transforms.Resize(SIZE, bicubic), transforms.CenterCrop(SIZE), np.asarray]
    )
    image = Image.open(io.BytesIO(pictures()[kind])).convert("RGB")
    np.testing.assert_array_equal(theirs(image), torchvisions(pictures()[kind]))
