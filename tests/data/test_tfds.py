"""Slow to import and to prepare: one small dataset serves all checks."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from clipjax.data import Preprocess, SampleError, make_source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    class TinyPairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path_factory.mktemp("pkg")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["tabby_cat", "dog"]),
                "number": tfds.features.ClassLabel(num_classes=2),
                "captions": tfds.features.Sequence(tfds.features.Text()),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(12):
                image = io.BytesIO()  # encoded: TFDS itself encodes with TensorFlow only
                Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(image, "PNG")
                image.seek(0)
                captions = [f"a {i}", f"b {i}"][: i + 1 if i < 2 else 2] if i != 3 else []
                yield i, {"image": image, "label": i % 2, "number": i % 2, "captions": captions}

    path = tmp_path_factory.mktemp("tfds")
    builder = TinyPairs(data_dir=str(path), file_format="array_record")
    builder.download_and_prepare()
    assert "tensorflow" not in sys.modules
    return str(path)


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
    captioned = make(data_dir, caption_field="captions")
    texts = {}
    for number, i in zip(numbers, range(12), strict=True):
        try:
            texts[number] = captioned[i]["text"]
        except SampleError as error:
            texts[number] = error.reason
    assert texts[0] == "a 0" and texts[5] == ("a 5", "b 5") and texts[3] == "missing_text"
    assert captioned.fingerprint() != source.fingerprint()
    assert len(make(data_dir, "tfds:tiny_pairs:train[:50%]")) == 6


def test_bad_input(data_dir):
    for spec, options, message in (
        ("tfds:tiny_pairs", {}, "no split"),
        ("tfds:tiny_pairs:test", {}, "Unknown split"),
        ("tfds:no_such_data:train", {}, "cannot be opened"),
        ("tfds:tiny_pairs:train", {"label_field": "number"}, "calls its classes 0, 1"),
        ("tfds:tiny_pairs:train", {"caption_field": "text"}, "has no 'text'"),
        ("tfds:tiny_pairs:train", {"class_names": ("a",)}, "2 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            make(data_dir, spec, **options)


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
        from clipjax.data.tfds_builder import ImageCaptions

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
