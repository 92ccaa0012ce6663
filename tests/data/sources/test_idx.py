"""Pictures in IDX files, as MNIST is published: read by hand, and damage named."""

import gzip

import numpy as np
import pytest
from idx_files import idx, write_idx

from clipjax.data import make_source
from clipjax.data.classes.named_lists import load_class_names

IMAGES = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
LABELS = np.array([2, 0, 2], np.uint8)


def write(folder, images=IMAGES, labels=LABELS, prefix="train", packed=True):
    return write_idx(folder, images, labels, prefix, packed)


@pytest.mark.parametrize("packed", [True, False])
def test_pictures_and_classes(tmp_path, packed):
    write(tmp_path, packed=packed)
    write(tmp_path, IMAGES[:1], LABELS[:1], "t10k", packed)
    source = make_source(f"idx:{tmp_path}:train?class_names=cat,dog,cow")
    assert len(source) == 3 and len(make_source(f"idx:{tmp_path}:test")) == 1
    assert list(source.labels()) == LABELS.tolist() and source[1]["text"] == "cat"
    assert [source[i]["key"] for i in range(3)] == list(source.keys())
    image = source[2]["image"]
    assert image.shape == (2, 4, 3) and image.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], IMAGES[2])
    # Without names they are numbers; the bytes and the names make the identity, not the packing.
    assert make_source(f"idx:{tmp_path}:train")[0]["text"] == "2"
    same = make_source(f"idx:{write(tmp_path, packed=not packed)}:train?class_names=cat,dog,cow")
    assert same.fingerprint() == source.fingerprint()
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", 1 + IMAGES)
    other = make_source(f"idx:{other}:train?class_names=cat,dog,cow")
    assert other.fingerprint() != source.fingerprint()


def test_names_of_fashion_mnist():
    names = load_class_names("fashion_mnist")
    assert len(names) == 10 and names[0] == "T-shirt/top" and names[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("split", "has the splits train, test, not validation"),
        ("gone", "holds neither train-labels-idx1-ubyte nor"),
        ("cut", r"train-images-idx3-ubyte.gz is cut off"),
        ("short", r"is damaged: 23 bytes of \[3, 2, 4\]"),
        ("bytes", "is damaged: "),
        ("kind", "is no IDX file of unsigned bytes of 3 dimensions: it begins with 00000d03"),
        ("count", "holds 3 pictures of train and 2 labels"),
        ("names", "has the class 2, and 2 names"),
    ],
)
def test_damage_is_named(tmp_path, harm, words):
    write(tmp_path, labels=LABELS[:2] if harm == "count" else LABELS)
    images, labels = (
        tmp_path / "train-images-idx3-ubyte.gz",
        tmp_path / "train-labels-idx1-ubyte.gz",
    )
    whole = idx(IMAGES)
    if harm == "gone":
        labels.unlink()
    elif harm == "cut":
        images.write_bytes(images.read_bytes()[:-9])
    elif harm in ("short", "kind"):
        data = whole[:-1] if harm == "short" else whole[:2] + bytes((13,)) + whole[3:]
        images.write_bytes(gzip.compress(data))
    elif harm == "bytes":
        images.write_bytes(b"no gzip at all")
    split = "validation" if harm == "split" else "train"
    names = "?class_names=cat,dog" if harm == "names" else ""
    with pytest.raises(ValueError, match=words):
        make_source(f"idx:{tmp_path}:{split}{names}")
