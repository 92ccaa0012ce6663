import io

import numpy as np
from counting import wait_until
from PIL import Image

from clipjax.data.inspect import statistics
from clipjax.data.inspect.statistics import difference_hash, measure, summarise
from clipjax.data.source import SampleError


def picture(seed, size=(40, 30)):
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def encoded(image, quality=95):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


class Pairs:
    """Five pictures: one twice, one twice in two qualities; and one that cannot be read."""

    class_names = None
    images = (
        encoded(picture(0)),
        encoded(picture(0)),
        encoded(picture(1, (160, 120))),
        encoded(picture(1, (160, 120)), quality=85),
        encoded(picture(2, (90, 60))),
        b"no picture",
    )

    def __len__(self):
        return 6

    def __getitem__(self, index):
        text = {"de": ("Katze", "<b>Kater</b>"), "en": "a cat"} if index == 4 else "one two three"
        return {"image": self.images[index], "text": text, "key": f"k{index}"}


def test_counts():
    found = summarise(measure(Pairs(), np.arange(6), workers=2))
    assert found["examples"] == 5 and found["unusable"] == {"image_format": 1}
    assert found["width"]["p0"] == 40 and found["width"]["p100"] == 160
    assert found["languages"] == {"captions": 4, "de": 2, "en": 1}
    assert found["words"] == {"p0": 1, "p5": 1, "p50": 3, "p95": 3, "p100": 3}
    duplicates = found["duplicates"]
    assert duplicates["byte for byte"] == {
        "groups": 1,
        "superfluous": 1,
        "largest": [["k0", "k1"]],
    }
    assert duplicates["by look"]["largest"] == [["k0", "k1"], ["k2", "k3"]]


def test_nothing_is_no_error():
    found = summarise(measure(Pairs(), np.array([5])))
    assert found["examples"] == 0 and found["width"] == {}


def test_the_hash_sees_another_picture_and_no_other_size():
    hashes = [difference_hash(picture(0, size)) for size in ((40, 30), (400, 300))]
    assert (hashes[0] ^ hashes[1]).bit_count() <= 3
    assert (hashes[0] ^ difference_hash(picture(1))).bit_count() > 10


def test_a_source_that_cannot_read_is_counted():
    class Broken(Pairs):
        def __getitem__(self, index):
            raise SampleError("damaged", "cut off")

    assert summarise(measure(Broken(), np.arange(6)))["unusable"] == {"damaged": 6}


class Same(Pairs):
    """Many times the same picture; counts how many are read."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return 300

    def __getitem__(self, index):
        self.read += 1
        return {"image": self.images[0], "text": "one", "key": f"k{index}"}


def test_of_large_groups_the_first_keys_are_named():
    duplicates = summarise(measure(Same(), np.arange(300), workers=3))["duplicates"]
    first = ["k0", "k1", "k2", "k3", "k4"]
    expected = {"groups": 1, "superfluous": 299, "largest": [first]}
    assert duplicates == {"byte for byte": expected, "by look": expected}


def test_reading_runs_ahead_of_counting_by_a_few_tasks(monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", 4)
    source = Same()
    chunks = measure(source, np.arange(300), workers=2)
    seen = len(next(chunks))
    wait_until(lambda: source.read > seen)  # it runs ahead
    chunks.close()  # what was begun has ended by then
    assert source.read <= 4 * 6
    found = list(measure(source, np.arange(299), workers=2))
    assert [item.key for chunk in found for item in chunk] == [f"k{i}" for i in range(299)]
