"""Slow to import and to prepare: one small dataset serves all checks."""

import functools
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from counting import HANGS_S
from PIL import Image

from clipjax.data import Preprocess, SampleError, make_source
from clipjax.data.source import pictures_of
from clipjax.data.sources import tfds

ROOT = pathlib.Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@functools.cache  # TFDS registers a class once
def builder_class():
    import tensorflow_datasets as tfds

    class TinyPairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = pathlib.Path(tempfile.gettempdir())
        base = 0  # the first picture's colour

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["tabby_cat", "dog"]),
                "number": tfds.features.ClassLabel(num_classes=2),
                "digits": tfds.features.ClassLabel(names=["0", "1", "background"]),
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "scalar": tfds.features.Scalar(dtype=np.int64),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "noise": self._noise()}

        def _generate_examples(self):
            for i in range(12):
                pixels = np.full((4, 5, 3), self.base + i, np.uint8)
                captions = [f"a {i}", f"b {i}"][: i + 1 if i < 2 else 2] if i != 3 else []
                yield i, self._row(i, pixels, captions)

        def _noise(self):  # a file of several blocks
            rng = np.random.default_rng(0)
            for i in range(40):
                yield i, self._row(i, rng.integers(0, 255, (60, 60, 3), np.uint8), [f"{i}"])

        def _row(self, i, pixels, captions):
            image = io.BytesIO()  # encoded: TFDS itself encodes with TensorFlow only
            Image.fromarray(pixels).save(image, "PNG")
            image.seek(0)
            labels = {"label": i % 2, "number": i % 2, "digits": i % 3, "scalar": i}
            return {"image": image, "captions": captions, **labels}

    return TinyPairs


def prepare(path, base=0):
    builder = builder_class()(data_dir=str(path), file_format="array_record")
    builder.base = base
    builder.download_and_prepare()
    assert "tensorflow" not in sys.modules
    return str(path)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def copy(data_dir, tmp_path):
    """A copy that may be damaged: its folder, and the file of a split."""
    shutil.copytree(data_dir, tmp_path / "copy")

    def file_of(split):
        (found,) = (tmp_path / "copy").rglob(f"tiny_pairs-{split}.array_record*")
        return found

    return str(tmp_path / "copy"), file_of


def make(data_dir, spec="tfds:tiny_pairs:train", **options):
    return make_source({"spec": spec, "data_dir": data_dir, **options})


def test_class_names_and_captions(data_dir):
    source = make(data_dir)
    assert len(source) == 12 and source.class_names == ("tabby cat", "dog")
    numbers = []
    for i in range(12):
        example = source[i]
        assert isinstance(example["image"], bytes)
        assert example["text"] == source.class_names[example["label"]]
        numbers.append(int(Preprocess(2)(example["image"])[0, 0, 0]))
    assert sorted(numbers) == list(range(12))
    turned = make(data_dir, class_names=("dog", "cow", "tabby cat"))  # found by name
    assert [turned[i]["text"] for i in range(12)] == [source[i]["text"] for i in range(12)]
    assert {turned[i]["label"] for i in range(12)} == {0, 2}
    captioned = make(data_dir, caption_field="captions")
    texts = {}
    for number, i in zip(numbers, range(12), strict=True):
        try:
            texts[number] = captioned[i]["text"]
        except SampleError as error:
            texts[number] = error.reason
    assert texts[0] == "a 0" and texts[5] == ("a 5", "b 5") and texts[3] == "missing_text"
    # The name that tables have, and the one before it, are the same option.
    named = make(data_dir, text_field="captions")
    assert named.fingerprint() == captioned.fingerprint()
    lines = make(data_dir, text_field="captions", captions="lines")
    assert lines.captions == "lines" and lines.fingerprint() != named.fingerprint()
    with pytest.raises(ValueError, match="caption_field is the old name of text_field"):
        make(data_dir, caption_field="captions", text_field="captions")
    assert len(set(pictures_of(source))) == 12 and next(source.pictures()) == next(named.pictures())
    assert captioned.fingerprint() != source.fingerprint()
    assert len(make(data_dir, "tfds:tiny_pairs:train[:50%]")) == 6


def test_bad_input(data_dir):
    for spec, options, message in (
        ("tfds:tiny_pairs", {}, "no split"),
        ("tfds:tiny_pairs:test", {}, "Unknown split"),
        ("tfds:no_such_data:train", {}, "cannot be opened"),
        ("tfds:tiny_pairs:train", {"label_field": "number"}, "calls its classes 0, 1"),
        ("tfds:tiny_pairs:train", {"label_field": "digits"}, "calls its classes 0, 1 "),
        ("tfds:tiny_pairs:train", {"caption_field": "text"}, "has no 'text'"),
        ("tfds:tiny_pairs:train", {"caption_field": "scalar"}, "no 'scalar' that is Text"),
        ("tfds:tiny_pairs:train", {"label_field": "scalar"}, "no 'scalar' that is ClassLabel"),
        (
            "tfds:tiny_pairs:train",
            {"image_field": "label"},
            r"that is Image; .*label \(ClassLabel\)",
        ),
        (
            "tfds:tiny_pairs:train",
            {"caption_field": "captions", "label_field": "lable"},
            r"no 'lable' that is ClassLabel; it has image \(Image\), .*\?label_field=",
        ),
        ("tfds:tiny_pairs:train", {"class_names": ("a",)}, "2 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            make(data_dir, spec, **options)


def test_groups_are_texts_numbers_or_labels(data_dir):
    source = make(data_dir, group_field=("digits", "scalar"))
    assert source.group_names == ("digits", "scalar")
    found = [source[i] for i in range(12)]
    order = [int(e["groups"]["scalar"]) for e in found]  # TFDS shuffles
    assert sorted(order) == list(range(12)) and [e["label"] for e in found] == [
        i % 2 for i in order
    ]
    names = ["0", "1", "background"]
    assert [e["groups"]["digits"] for e in found] == [names[i % 3] for i in order]
    assert source.fingerprint() != make(data_dir).fingerprint()
    for wrong in ("captions", "region"):
        with pytest.raises(ValueError, match=f"no '{wrong}' that is one text.*group_field"):
            make(data_dir, group_field=wrong)


def test_captions_need_no_names_of_classes(data_dir):
    source = make(data_dir, caption_field="captions", label_field="digits")
    assert source.class_names is None and "label" not in source[0] and source[0]["text"]
    named = make(
        data_dir, caption_field="captions", label_field="digits", class_names=("a", "b", "c")
    )
    assert named.class_names == ("a", "b", "c") and named[0]["label"] in (0, 1, 2)


def test_the_fingerprint_follows_the_files(data_dir, copy, tmp_path):
    before = make(data_dir).fingerprint()
    assert make(copy[0]).fingerprint() == before
    other = make(prepare(tmp_path / "other", base=100))
    assert len(other) == 12 and other.fingerprint() != before
    assert make(data_dir, "tfds:tiny_pairs:train[:50%]").fingerprint() != before


def test_a_damaged_record_is_replaced_and_named(copy):
    folder, file_of = copy
    content = bytearray(file_of("noise").read_bytes())
    content[100_000] ^= 1
    file_of("noise").write_bytes(content)
    for split, count in (("noise", 40), ("noise[5:]", 35)):
        source = make(folder, f"tfds:tiny_pairs:{split}", caption_field="captions")
        assert len(source) == count
        bad = {}
        for index in range(count):
            try:
                source[index]
            except SampleError as error:
                bad[error.key] = error.reason
        assert list(bad.values()) == ["record_damaged"]
        assert list(bad) == ["tiny_pairs-noise.array_record-00000-of-00001:8"]


def test_a_file_that_is_cut_or_missing_is_named_at_opening(copy):
    folder, file_of = copy
    path = file_of("noise")
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-10], content[:70_000], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{path} .*\. Prepare the dataset anew"):
            make(folder, "tfds:tiny_pairs:noise")
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path} is missing"):
        make(folder, "tfds:tiny_pairs:noise")
    assert len(make(folder)) == 12  # the files of other splits are not looked at


_READING = """
import pickle
import sys
from clipjax.data import make_source
source = make_source({"spec": "tfds:tiny_pairs:train", "data_dir": sys.argv[1]})
captions = make_source(
    {"spec": "tfds:tiny_pairs:noise", "data_dir": sys.argv[1], "caption_field": "captions"}
)
assert source[0]["text"] in ("tabby cat", "dog") and captions[7]["text"].isdecimal()
assert isinstance(source[0]["image"], bytes) and source.fingerprint()
assert pickle.loads(pickle.dumps(captions))[7] == captions[7]  # for worker processes
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""


def test_reading_needs_no_tensorflow(data_dir):
    command = [sys.executable, "-c", _READING, data_dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr


def test_nothing_is_imported_because_a_prepared_folder_names_it(copy, tmp_path):
    """TFDS imports the class of a field by the name in features.json."""
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (features,) = (tmp_path / "copy").rglob("features.json")
    text = features.read_text()
    whole = "tensorflow_datasets.core.features.scalar.Scalar"
    assert whole in text
    command = [sys.executable, "-m", "clipjax", "data", "stats"]
    spec = f"tfds:tiny_pairs:train?data_dir={copy[0]}&caption_field=captions"
    for name, code in ((whole, 0), ("canary.Scalar", 1)):
        features.write_text(text.replace(whole, name))
        done = subprocess.run(
            [*command, spec],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )
        assert done.returncode == code, done.stderr
        assert not (tmp_path / "ran").exists()
    assert "tfds:tiny_pairs names the class 'canary.Scalar' for a field" in done.stderr


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("dataset_info.json", "{", "[" * 10**5, "is damaged: ParseError"),
        ("dataset_info.json", '"{DATASET}', '"{0.__class__}', "is damaged: IndexError"),
        ("dataset_info.json", '"{DATASET}', '"../../../{DATASET}', "points outside"),
    ],
)
def test_a_prepared_folder_that_is_bent_is_one_sentence(copy, tmp_path, name, old, new, message):
    (path,) = (tmp_path / "copy").rglob(name)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        make(copy[0])


def test_classes_are_counted_before_they_are_named():
    class Label:
        num_classes = 10**11

        @property
        def names(self):
            raise AssertionError("a name for each is made")

    with pytest.raises(ValueError, match="100,000,000,000 classes; at most"):
        tfds.class_names_of("x", Label(), None, needed=True)


class TestBuilder:
    @pytest.fixture(scope="class")
    def pairs(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("pairs")
        for i in range(6):
            Image.fromarray(np.full((4, 5, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
        rows = [f'{{"image": "{i}.png", "text": ["a {i}", "b {i}"]}}\n' for i in range(6)]
        (folder / "pairs.jsonl").write_text("".join(rows) + '{"image": "no.png", "text": "c"}\n')
        return f"jsonl:{folder}/pairs.jsonl"

    def prepare(self, pairs, path, **options):
        from clipjax.data.packing.tfds_builder import ImageCaptions

        config = ImageCaptions.config_of("six", {"train": pairs}, **options)
        ImageCaptions(config=config, data_dir=str(path)).download_and_prepare(
            file_format="array_record"
        )
        assert "tensorflow" not in sys.modules

    def test_what_is_prepared_is_a_source(self, pairs, tmp_path):
        self.prepare(pairs, tmp_path, max_bad_fraction=0.2)
        spec = "tfds:image_captions/six:train?caption_field=captions"
        source = make(str(tmp_path), spec)
        found = {}
        for i in range(len(source)):
            example = source[i]
            found[example["text"]] = int(Preprocess(2)(example["image"])[0, 0, 0])
        assert found == {(f"a {i}", f"b {i}"): 40 * i for i in range(6)}

    def test_too_many_unusable_examples_are_an_error(self, pairs, tmp_path):
        with pytest.raises(Exception, match="1 of 7 examples"):
            self.prepare(pairs, tmp_path, max_bad_fraction=0.1)
