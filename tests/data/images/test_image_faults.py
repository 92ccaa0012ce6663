"""Damaged and hostile pictures: no crash, no hang, every refusal counted and named."""

import collections
import io
import resource

import numpy as np
import pytest
from absl import logging
from broken_pictures import mutated, originals
from counting import counted_calls
from PIL import Image, ImageOps
from worker_sources import tokens_of

from clipjax.data import Loader, Preprocess, SampleError, decode_image, make_transforms
from clipjax.data.images import fast_jpeg
from clipjax.data.images import preprocess as module
from clipjax.data.loading.bad_examples import BadCount

MOST_CALLS = 5_000  # of functions, for a picture
REASONS = {"image_empty", "image_format", "image_no_decoder", "image_parts", "image_pixels"}
REASONS |= {"image_scans", "image_undecodable"}
SIDE = 16
# Pillow warns of what it reads nevertheless; a run goes on then, and so does this.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def outcome(decode, data):
    """What became of a picture: `decoded`, the reason of a refusal, or `crash: ...`."""
    try:
        image = decode(data)
        if image.mode not in ("RGB", "RGBA"):
            return f"crash: mode {image.mode}"
        pixels = Preprocess(SIDE)(image)
        whole = pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
        return "decoded" if whole else f"crash: {pixels.dtype}{pixels.shape}"
    except SampleError as error:
        return error.reason if error.message else "crash: a refusal without a word"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"


def damaged_pictures(number):
    rng = np.random.Generator(np.random.Philox(key=11))
    whole = list(originals().values())
    return [mutated(whole[i % len(whole)], rng) for i in range(number)]


def campaign(pictures, decode=decode_image):
    """Decodes damaged pictures; gives what became of each, and the most calls that one took."""
    found, most = [], 0
    for place, data in enumerate(pictures):
        with counted_calls() as calls:
            found.append(outcome(decode, data))
        most = max(most, calls.number)
        if place % 10 == 0:
            assert outcome(decode, data) == found[-1]
    return found, most


class Pictures:
    """Damaged pictures, and between them as many whole ones."""

    class_names = None

    def __init__(self, damaged):
        self.damaged, self.whole = damaged, list(originals().values())

    def __len__(self):
        return 2 * len(self.damaged)

    def __getitem__(self, index):
        place, is_whole = divmod(index, 2)
        image = self.whole[place % len(self.whole)] if is_whole else self.damaged[place]
        return {"image": image, "text": "a picture", "key": str(index)}

    def fingerprint(self):
        return "pictures"


def through_loader(damaged, decode, batch_size=20):
    """One epoch; gives the reasons by example, and which were met in their own place."""
    source = Pictures(damaged)
    crop = {"name": "random_resized_crop", "scale": (0.5, 1.0), "decode": decode}
    reasons, own, counted = {}, set(), 0
    with Loader(
        source,
        make_transforms((crop,), image_size=SIDE),
        tokens_of,
        batch_size=batch_size,
        seed=0,
        preprocess=Preprocess(SIDE),
        max_bad_fraction=1.0,
    ) as loader:
        for step in range(len(source) // batch_size):
            assert loader.batch(step)["image"].shape == (batch_size, SIDE, SIDE, 3)
            total = sum(loader.counts().values())
            new = loader.bad_examples()[-(total - counted) :] if total > counted else ()
            counted = total
            start = step * batch_size
            for example in new:
                assert start <= example.position < start + batch_size and example.message
                assert reasons.setdefault(example.key, example.reason) == example.reason
            indices = loader.workers.maker.indices(start, batch_size)
            own |= {str(i) for i in indices} & {example.key for example in new}
        counts = loader.counts()
    assert set(counts) <= REASONS and sum(counts.values()) == counted
    return reasons, own


def check_campaign(number, through):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pictures = damaged_pictures(number)
    found, most = campaign(pictures)
    counts = collections.Counter(found)
    assert set(counts) <= REASONS | {"decoded"}, counts
    assert most < MOST_CALLS
    assert counts["decoded"] > number / 4 and counts["image_undecodable"] > number / 10
    assert counts["image_format"] > number / 50
    # By the loader: each refused one is met in its own place, under the same reason.
    expected = {str(2 * i): reason for i, reason in enumerate(found[:through])}
    expected = {key: reason for key, reason in expected.items() if reason != "decoded"}
    for decode in ("reference", "fast"):
        reasons, own = through_loader(pictures[:through], decode)
        assert reasons == expected and own == set(expected), decode
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 512 << 10  # kilobytes
    return counts, most


def test_few_damaged_pictures():
    check_campaign(600, 300)


@pytest.mark.nightly
def test_ten_thousand_damaged_pictures():
    counts, most = check_campaign(10_000, 10_000)
    logging.info("%s, at most %d calls", dict(counts), most)


def plain(data):
    """The picture as Pillow alone reads it: upright, on white."""
    image = Image.open(io.BytesIO(data))
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # damage to the EXIF block alone
        image = image.copy()
    if image.mode in ("I", "I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    pixels = np.asarray(image.convert("RGB" if image.mode == "CMYK" else "RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255 if pixels.shape[2] == 4 else 1
    return pixels[..., :3] * alpha + 255 * (1 - alpha)


def pixel_faults(pictures):
    """Compares the pixels of all that is decoded: with Pillow's, and the fast crop with the other.

    Gives which pictures differ, and of the fast crops the differences: the mean, where one between
    neighbours (and one of a grey level) is 1. Mirrored, turned or a pixel aside it is about 1.
    """
    crops = [
        make_transforms(
            ({"name": "random_resized_crop", "scale": (0.5, 1.0), "decode": decode},),
            image_size=SIDE,
        )[0]
        for decode in ("reference", "fast")
    ]
    differ, distances = [], []
    for place, data in enumerate(pictures):
        example = {"image": data, "text": "", "key": str(place)}
        try:
            whole = np.asarray(module.to_rgb(decode_image(data)))
        except SampleError:
            continue
        expected = plain(data)
        if whole.shape != expected.shape or np.abs(whole - expected).max() > 1:
            differ.append(place)
        slow, fast = (
            crop(example, np.random.Generator(np.random.Philox(key=place)))["image"].astype(int)
            for crop in crops
        )
        if fast_jpeg.FastJpeg.open(data) is None:
            assert np.array_equal(slow, fast)
        elif (slow != fast).any():  # else damage had it decoded by the reference
            steps = np.mean([np.abs(np.diff(slow, axis=axis)).mean() for axis in (0, 1)])
            distances.append(np.abs(slow - fast).mean() / (1 + steps))
    return differ, np.array(distances)


def check_pixels(number):
    differ, distances = pixel_faults([*originals().values(), *damaged_pictures(number)])
    assert differ == []
    assert len(distances) > number / 100
    assert distances.max() < 0.5 and distances.mean() < 0.2
    return distances


def test_pixels_of_few_damaged_pictures():
    check_pixels(300)


@pytest.mark.nightly
def test_pixels_of_ten_thousand_damaged_pictures():
    distances = check_pixels(10_000)
    logging.info("%d fast crops, at most %.2f away", len(distances), distances.max())


@pytest.mark.parametrize("fault", ["mirrored", "shifted", "not turned", "red for blue"])
def test_a_fault_of_the_fast_decoder_is_seen(fault, monkeypatch):
    """Negative control."""
    resize = fast_jpeg.resize_to
    faulty = {
        "mirrored": lambda image, size: resize(image, size)[:, ::-1],
        "shifted": lambda image, size: resize(np.roll(image, 2, axis=1), size),
        "red for blue": lambda image, size: resize(image, size)[..., ::-1],
    }
    if fault == "not turned":
        monkeypatch.setattr(fast_jpeg, "orientation_of", lambda data: 1)
    else:
        monkeypatch.setattr(fast_jpeg, "resize_to", faulty[fault])
    differ, distances = pixel_faults(originals().values())
    assert differ == [] and distances.max() > 0.5


@pytest.mark.parametrize("fault", ["orientation", "ground", "16 bits"])
def test_a_fault_of_the_reference_is_seen(fault, monkeypatch):
    """Negative control."""
    faulty = {
        "orientation": ("turn_of", lambda image: None),
        "ground": ("to_rgb", lambda image: image.convert("RGB")),
        "16 bits": ("from_16_bits", lambda image: image.convert("RGB")),
    }
    monkeypatch.setattr(module, *faulty[fault])
    assert pixel_faults(originals().values())[0] != []


def test_oracles_see_what_they_look_for(monkeypatch):
    """Negative controls."""
    pictures = damaged_pictures(60)

    def naive(data):  # lets the errors of the decoders out, and odd modes
        return Image.open(io.BytesIO(data))

    found, _ = campaign(pictures, naive)
    assert sum(text.startswith("crash") for text in found) > 20

    def slow(data):
        for _ in range(MOST_CALLS):
            data.index(data)
        return decode_image(data)

    assert campaign(pictures[:5], slow)[1] > MOST_CALLS
    add = BadCount.add
    monkeypatch.setattr(BadCount, "add", lambda self, seen, bad: add(self, seen, bad[1:]))
    _, own = through_loader(pictures, "reference")
    refused = {str(2 * i) for i, reason in enumerate(campaign(pictures)[0]) if reason != "decoded"}
    assert own != refused
