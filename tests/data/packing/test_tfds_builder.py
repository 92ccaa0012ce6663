"""The TFDS builder, alone and by Beam, for which stands a module of a few lines."""

import json
import sys
import types

import numpy as np
import pytest
from archives import png

from clipjax.data import Preprocess, make_source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Create:
    """Runs what follows at once, in this process; TFDS takes its rows for a generator's."""

    def __init__(self, values):
        self.values = values

    def __or__(self, work):
        return (row for value in self.values for row in work(value))


@pytest.fixture
def ranges(monkeypatch):
    """Puts the stand-in for Beam, with tasks of two examples; gives the starts of those run."""
    from clipjax.data.packing import tfds_builder

    started, real = [], tfds_builder.examples_from

    def recorded(spec, start):
        started.append(start)
        return real(spec, start)

    beam = types.SimpleNamespace(Create=Create, FlatMap=lambda work: work)
    core = tfds_builder.tfds.core
    monkeypatch.setattr(core, "lazy_imports", types.SimpleNamespace(apache_beam=beam))
    monkeypatch.setattr(tfds_builder, "RANGE", 2)
    monkeypatch.setattr(tfds_builder, "examples_from", recorded)
    return started


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Seven pairs in two languages, and two that cannot be used."""
    folder = tmp_path_factory.mktemp("pairs")
    for i in range(8):
        (folder / f"{i}.png").write_bytes(png(30 * i))
    rows = [
        {"image": f"{i}.png", "text": {"de": f"Bild {i}", "en": [f"a {i}", f"b {i}"]}}
        for i in range(7)
    ]
    rows += [{"image": "no.png", "text": "c"}, {"image": "7.png", "text": " "}]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{folder}/pairs.jsonl"


def prepare(pairs, path, **options):
    from clipjax.data.packing.tfds_builder import ImageCaptions

    config = ImageCaptions.config_of("seven", {"train": pairs}, **options)
    builder = ImageCaptions(config=config, data_dir=str(path))
    builder.download_and_prepare(file_format="array_record")
    assert "tensorflow" not in sys.modules
    return builder


@pytest.mark.parametrize("beam", [False, True])
def test_what_is_prepared_is_a_source(pairs, tmp_path, ranges, beam):
    builder = prepare(pairs, tmp_path, beam=beam, max_bad_fraction=0.3)
    assert ranges == ([0, 2, 4, 6, 8] if beam else [])
    spec = f"tfds:image_captions/seven:train?caption_field=captions&data_dir={tmp_path}"
    source = make_source(spec)
    found = {}
    for i in range(len(source)):
        example = source[i]
        assert example["text"].keys() == {"de", "en"}
        text = (example["text"]["de"], *example["text"]["en"])
        found[text] = int(Preprocess(2)(example["image"])[0, 0, 0])
    assert found == {(f"Bild {i}", f"a {i}", f"b {i}"): 30 * i for i in range(7)}
    german = make_source(f"{spec}&language=de")
    assert {german[i]["text"] for i in range(7)} == {f"Bild {i}" for i in range(7)}
    assert german.fingerprint() != source.fingerprint()
    rows = builder.as_data_source(split="train")
    assert list(rows[0]["languages"]) == [b"de", b"en", b"en"]
    assert np.all([len(row["languages"]) == len(row["captions"]) for row in rows])


@pytest.mark.parametrize("beam", [False, True])
def test_too_many_unusable_examples_are_an_error(pairs, tmp_path, ranges, beam):
    with pytest.raises(ValueError, match=r"[12] of 9 examples of jsonl:.* are unusable"):
        prepare(pairs, tmp_path, beam=beam, max_bad_fraction=0.1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_data_is_not_taken_for_what_is_prepared(pairs, tmp_path, ranges):
    """TFDS itself would do nothing, and not say so."""
    prepare(pairs, tmp_path, max_bad_fraction=0.3)
    prepare(pairs, tmp_path, max_bad_fraction=0.3)  # the same: nothing is to be done
    with pytest.raises(ValueError, match=r"seven/1\.1\.0 holds other data.*another name"):
        prepare(f"{pairs}?language=de", tmp_path, max_bad_fraction=0.9)


def test_a_dataset_without_splits_is_refused():
    from clipjax.data.packing.tfds_builder import ImageCaptions

    with pytest.raises(ValueError, match="image_captions/none has no splits: give"):
        ImageCaptions.config_of("none", {})
