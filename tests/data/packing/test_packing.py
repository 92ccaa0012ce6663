import io
import json

import numpy as np
import pytest
from archives import png, tar
from PIL import Image

from clipjax.data.inspect.checking import check
from clipjax.data.packing import examples as packed_examples
from clipjax.data.packing.packer import Packing, encode, pack
from clipjax.data.source import SampleError
from clipjax.data.sources import make_source


def encoded(width, height, seed, format="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


class Pairs:
    """Ten pairs; those of `bad` cannot be used, and reading past `stop_at` kills the job."""

    class_names = None

    def __init__(self, bad=(), stop_at=None, text="text"):
        self.bad, self.stop_at, self.text, self.read = bad, stop_at, text, []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.stop_at:
            raise KeyboardInterrupt
        if index in self.bad:
            raise SampleError("undecodable", "damaged")
        size = (40 + index, 30)
        return {"image": encoded(*size, index), "text": f"{self.text} {index}", "key": f"k{index}"}

    def fingerprint(self):
        return self.text


def run(source, directory, **options):
    how = Packing(**{"shard_size": 4, "max_bad_fraction": 0.5, **options})
    return list(pack(source, directory, how, workers=1))


@pytest.mark.parametrize(("format", "suffix"), [("tar", "tar"), ("arrayrecord", "array_record")])
def test_what_is_packed_is_read(tmp_path, format, suffix):
    assert run(Pairs(bad=(5,)), tmp_path / "a", format=format) == [(1, 3), (2, 3), (3, 3)]
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["count"] == 9 and manifest["skipped"] == {"undecodable": 1}
    assert [shard["count"] for shard in manifest["shards"]] == [4, 3, 2]
    packed = make_source(f"{format}:{tmp_path}/a/*.{suffix}")
    source = Pairs()
    kept = [i for i in range(10) if i != 5]
    assert [packed[i]["text"] for i in range(len(packed))] == [f"text {i}" for i in kept]
    assert all(packed[i]["image"] == source[k]["image"] for i, k in enumerate(kept))
    # Nothing but shards and what belongs to them stays.
    names = {path.name.partition(".")[2] for path in (tmp_path / "a").iterdir()}
    assert names <= {"json", suffix, f"{suffix}.json", "tar.index"}


@pytest.mark.parametrize("format", ["tar", "arrayrecord"])
def test_the_same_input_gives_the_same_bytes(tmp_path, format):
    for name, text in (("a", "text"), ("b", "text"), ("c", "other")):
        run(Pairs(text=text), tmp_path / name, format=format, resize=20)
    digests = [
        [s["sha256"] for s in json.loads((tmp_path / n / "manifest.json").read_text())["shards"]]
        for n in "abc"
    ]
    assert digests[0] == digests[1] and not set(digests[0]) & set(digests[2])


def test_a_stopped_job_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Pairs(stop_at=6), tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    source = Pairs()
    run(source, tmp_path)
    assert sorted(source.read) == [4, 5, 6, 7]  # the other shards were whole
    again = Pairs()
    assert run(again, tmp_path) == [] and again.read == []
    whole = Pairs()
    run(whole, tmp_path.with_name("whole"))
    shards = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    assert (
        shards == json.loads((tmp_path.with_name("whole") / "manifest.json").read_text())["shards"]
    )


@pytest.mark.parametrize("format", ["tar", "arrayrecord"])
def test_a_finished_shard_that_was_damaged_is_made_anew(tmp_path, caplog, format):
    run(Pairs(), tmp_path / "whole", format=format)
    with pytest.raises(KeyboardInterrupt):
        run(Pairs(stop_at=9), tmp_path / "a", format=format)
    cut, flipped = sorted(
        path for path in (tmp_path / "a").iterdir() if path.suffix in (".tar", ".array_record")
    )
    cut.write_bytes(cut.read_bytes()[:700])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    source = Pairs()
    run(source, tmp_path / "a", format=format)
    assert sorted(source.read) == list(range(10)) and f"{cut} is not what was" in caplog.text
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()


def test_a_finished_job_makes_lost_shards_anew(tmp_path, caplog):
    run(Pairs(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "00001.tar").unlink()
    source = Pairs()
    run(source, tmp_path)
    assert sorted(source.read) == [4, 5, 6, 7] and "lost 00001.tar" in caplog.text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_is_packed_that_a_tar_source_refuses(tmp_path, monkeypatch):
    size = len(encoded(44, 30, 4))
    monkeypatch.setattr(packed_examples, "MAX_MEMBER_BYTES", size - 1)
    large = sum(len(encoded(40 + i, 30, i)) >= size for i in range(10))
    run(Pairs(), tmp_path, max_bad_fraction=1)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["skipped"] == {"too_large": large} and manifest["count"] == 10 - large > 0
    with pytest.raises(ValueError, match=r"shard_size is 250001: allowed are 1\.\.250000"):
        Packing(shard_size=250_001)
    Packing(shard_size=250_001, format="arrayrecord")


def test_a_bucket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="gs://b/out is in a bucket"):
        run(Pairs(), "gs://b/out")
    assert list(tmp_path.iterdir()) == []


def test_packed_mixes_have_every_key_once(tmp_path):
    for folder in "ab":
        (tmp_path / folder / "cat").mkdir(parents=True)
        (tmp_path / folder / "cat/1.jpg").write_bytes(encoded(40, 30, 0))
    mix = [{"spec": f"folder:{tmp_path}/{folder}", "weight": 1} for folder in "ab"]
    run(make_source(f"mix:{json.dumps(mix)}"), tmp_path / "out", format="arrayrecord")
    packed = make_source(f"arrayrecord:{tmp_path}/out/*.array_record")
    assert all(packed[i]["key"].endswith(f"cat/1.jpg#{i}") for i in range(2))


def test_a_directory_of_another_job_is_left_alone(tmp_path):
    run(Pairs(), tmp_path)
    with pytest.raises(ValueError, match="another job: its fingerprint"):
        run(Pairs(text="other"), tmp_path)
    with pytest.raises(ValueError, match="another job: its options"):
        run(Pairs(), tmp_path, resize=20)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        run(Pairs(), foreign)


def test_too_many_unusable_examples_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"2 of 10 examples are unusable \({'undecodable': 2}\)"):
        run(Pairs(bad=(1, 7)), tmp_path, max_bad_fraction=0.1)
    assert not (tmp_path / "manifest.json").exists()
    run(Pairs(bad=(1, 7)), tmp_path, max_bad_fraction=0.3)  # the shards are there already


def test_resizing_brings_the_shorter_side_down_and_never_up():
    how = Packing(resize=20)
    extension, data = encode(encoded(90, 40, 0, "PNG"), how)
    assert extension == "jpg" and Image.open(io.BytesIO(data)).size == (45, 20)
    small = encoded(90, 20, 0, "PNG")
    assert encode(small, how) == ("png", small)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 4), np.uint8)
    extension, data = encode(pixels, how)
    assert extension == "png" and np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    with pytest.raises(SampleError, match="begins with"):
        encode(b"no picture at all", Packing())


def test_languages_and_labels_travel(tmp_path):
    class Emoji(Pairs):
        class_names = ("cat", "dog")

        def __getitem__(self, index):
            text = {"de": "Katze", "en": ("cat", "kitty")}
            return {**super().__getitem__(index), "text": text, "label": index % 2}

    run(Emoji(), tmp_path)
    packed = make_source({"spec": f"tar:{tmp_path}/*.tar", "class_names": ("cat", "dog")})
    assert packed[1]["label"] == 1
    assert packed[0]["text"] == {"de": "Katze", "en": ("cat", "kitty")}
    with pytest.raises(ValueError, match="no languages"):
        run(Emoji(), tmp_path / "records", format="arrayrecord")


def test_groups_travel_in_tars(tmp_path):
    class Grouped(Pairs):
        class_names, group_names, field = ("cat", "dog"), ("region",), "region"

        def __getitem__(self, index):
            example = {**super().__getitem__(index), "label": index % 2}
            return {**example, "groups": {self.field: ("Asia", "Africa")[index % 2]}}

    source = Grouped()
    run(source, tmp_path / "out")
    packed = make_source(f"tar:{tmp_path}/out/*.tar?group_field=region")
    assert [packed[i]["groups"] for i in range(10)] == [source[i]["groups"] for i in range(10)]
    assert packed[1]["text"] == "text 1" and packed[1]["label"] == 1
    with pytest.raises(ValueError, match="hold no groups: pack it by"):
        run(source, tmp_path / "records", format="arrayrecord")
    source.field = "label"
    with pytest.raises(ValueError, match="has a 'label' of its own: rename that group_field"):
        run(source, tmp_path / "taken")
    Grouped.field, Grouped.__getitem__ = "region", lambda self, index: {**packed[index], "text": ""}
    with pytest.raises(ValueError, match="groups and no text"):
        run(Grouped(), tmp_path / "wordless")


def classes(path):
    """A shard of labels without words, with one picture that cannot be used."""
    members = [(f"{i}.png", png(i)) for i in range(4)]
    members += [(f"{i}.cls", str(i % 2).encode()) for i in range(3)]
    return make_source(f"tar:{tar(path, members)}")


def test_labels_without_words_travel(tmp_path):
    source = classes(tmp_path / "a.tar")
    run(source, tmp_path / "out")
    assert not [what for checked, _ in check(f"tar:{tmp_path}/out/*.tar") for what in checked[1]]
    packed = make_source(f"tar:{tmp_path}/out/*.tar")
    assert len(packed) == 3
    for i in range(3):  # enough for an evaluation that brings its own names
        assert {**packed[i], "key": ""} == {**source[i], "key": ""} and packed[i]["label"] == i % 2
    named = make_source(f"tar:{tmp_path}/out/*.tar?class_names=cat,dog")
    assert [named[i]["text"] for i in range(3)] == ["cat", "dog", "cat"]


def test_records_hold_no_labels_without_words(tmp_path):
    with pytest.raises(ValueError, match=r"a label and no text.*--format tar"):
        run(classes(tmp_path / "a.tar"), tmp_path / "out", format="arrayrecord")
    assert not (tmp_path / "out").exists()
    named = make_source(f"tar:{tmp_path}/a.tar?class_names=cat,dog")
    run(named, tmp_path / "out", format="arrayrecord")
    packed = make_source(f"arrayrecord:{tmp_path}/out/*.array_record")
    assert [(packed[i]["text"], packed[i]["label"]) for i in range(2)] == [("cat", 0), ("dog", 1)]


class Texts(Pairs):
    """Ten pairs, of which the texts are given."""

    def __init__(self, *texts):
        super().__init__()
        self.texts = texts

    def __getitem__(self, index):
        return {**super().__getitem__(index), "text": self.texts[index]}


@pytest.mark.parametrize(("format", "suffix"), [("tar", "tar"), ("arrayrecord", "array_record")])
def test_shards_of_which_nothing_is_left_are_whole(tmp_path, format, suffix):
    source = Texts("a", "b", "", " ", (), "", "c", ("", "d"), "e", "f")
    run(source, tmp_path, format=format, shard_size=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["skipped"] == {"text_empty": 4}
    assert [shard["count"] for shard in manifest["shards"]] == [2, 0, 0, 2, 2]
    for decode in (False, True):
        found = [checked for checked, _ in check(f"{format}:{tmp_path}/*.{suffix}", decode=decode)]
        assert sum(checked.examples for checked in found) == 6
        assert not [what for checked in found for what in checked.findings]
    assert len(make_source(f"{format}:{tmp_path}/*.{suffix}")) == 6


def test_what_is_left_out_on_purpose_is_no_damage(tmp_path):
    class Filtered(Pairs):
        def __getitem__(self, index):
            if index < 5:
                raise SampleError("filtered_language", "it has no caption in 'de'")
            return super().__getitem__(index)

    run(Filtered(), tmp_path, max_bad_fraction=0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["count"] == 5 and manifest["skipped"] == {"filtered_language": 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "zip"}, "allowed are tar, arrayrecord"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"quality": 101}, "quality is 101"),
        ({"max_bad_fraction": -1.0}, r"max_bad_fraction is -1.0: allowed are 0\.\.1"),
        ({"max_bad_fraction": 2.0}, "max_bad_fraction is 2.0"),
        ({"max_bad_fraction": float("nan")}, "max_bad_fraction is nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Packing(**options)


@pytest.mark.parametrize("format", ["tar", "arrayrecord"])
def test_what_an_example_of_ones_own_lacks_is_named(tmp_path, format):
    class Own(list):
        class_names = None

        def fingerprint(self):
            return "0"

    with pytest.raises(ValueError, match=r"the data source, at 0, gives dict without text, key;"):
        list(pack(Own([{"image": encoded(8, 8, 0)}]), tmp_path / "to", Packing(format=format)))
