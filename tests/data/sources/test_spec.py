import pytest

from clipjax.data import SOURCES, make_source, parse_spec, spec_name
from clipjax.data.source import split_options, with_filter


@pytest.mark.parametrize(
    "spec, parsed",
    [
        ("openmoji:train", ("openmoji", "train", None)),
        ("openmoji", ("openmoji", "", None)),
        ("synthetic:1000", ("synthetic", "1000", None)),
        ("folder:/data/my pets", ("folder", "/data/my pets", None)),
        ("tfds:cifar100:test", ("tfds", "cifar100", "test")),
        ("tfds:cifar100/x:3.0.2:train[:10%]", ("tfds", "cifar100/x:3.0.2", "train[:10%]")),
        ("arrayrecord:gs://b/a.array_record", ("arrayrecord", "gs://b/a.array_record", None)),
    ],
)  # fmt: skip
def test_parse_spec(spec, parsed):
    assert parse_spec(spec) == parsed


def test_spec_name():
    assert spec_name("openmoji:unseen") == "openmoji_unseen"
    assert spec_name("tfds:cifar100:train[:10%]") == "tfds_cifar100_train_10"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "kind:where"),
        (None, "kind:where"),
        ("tfds::train", "empty part"),
        ("nonsense:x", "known are aro, arrayrecord"),
        ("openmoji:test", "train, fit, validation, unseen, all"),
        ("openmoji:train:x", "openmoji has no split"),
        ("synthetic:many", "no number"),
        ({"spec": "synthetic:10", "sides": 3}, "sides"),
        ({"spec": "synthetic:10", "where": "x"}, "part of the spec"),
        ({"kind": "synthetic"}, "kind:where"),
        ({"name": "synthetic"}, r'is a kind: write {"spec": "synthetic:where"}'),
        ({"name": "nonsense"}, "'nonsense' is unknown; allowed are module:Name"),
        ("folder:/no/such/directory", "no directory"),
        ("csv:http://example.com/a.csv", "http://"),
        ("arrayrecord:/no/such/file", "no file"),
        ("tar:/no/such/{000..002}.tar", "no file"),
        ("csv:" + "x" * 5000, "no file"),
        ("synthetic:5?side=abc", r"data\.source\.side = 'abc': expected a whole number$"),
        ("synthetic:5?side=1.5", r"side = 1\.5: expected a whole number"),
        ("synthetic:5?side=true", "side = True: expected a whole number"),
        ("synthetic:5?side=0", "side=0: pixels of a picture, at least 1"),
        ("openmoji:train?side=abc", "side = 'abc': expected a whole number"),
        ("openmoji:train?layers=1", "layers = 1: expected true or false"),
        ("parquet:x?cache_mb=x", "cache_mb = 'x': expected a number"),
        ("parquet:x?root=5", "root = 5: expected a text"),
        ("csv:x?image_field=5", r"image_field = 5: expected a text \(one of digits stands beside"),
        ("csv:x?text_field=5", "text_field = 5: expected a text or a list of texts"),
        ("csv:x?label_field=a,b", r"label_field = \('a', 'b'\): expected a text"),
        (
            "csv:x?captions=line",
            "captions='line' of x: `lines` makes each line of a text a caption",
        ),
        ("tar:x?ignore=true", "ignore = True: expected a text or a list of texts"),
        ("tar:x?class_names=5", "class_names = 5: expected a list of texts"),
        ("tar:x?class_names=cat", "a single class is written `cat,` in a SPEC"),
        ({"spec": "tar:x", "class_names": [1, 2]}, r"\[1, 2\]: expected a list of texts"),
    ],
)
def test_a_wrong_spec_is_one_clear_error(spec, message):
    with pytest.raises(ValueError, match=message):
        make_source(spec)


def test_options_in_the_spec():
    assert make_source("synthetic:10?side=32")[0]["image"].shape == (32, 32, 3)
    spec, options = split_options("tar:/x/a?.tar?ignore=npy,flac&a=true&b=1.5&c=de&d=-3")
    assert spec == "tar:/x/a?.tar"
    assert options == {"ignore": ("npy", "flac"), "a": True, "b": 1.5, "c": "de", "d": -3}
    assert split_options("x:y?class_names=007,true")[1] == {"class_names": ("007", "true")}
    assert split_options("tar:/x/a?.tar") == ("tar:/x/a?.tar", {})
    for wrong in ("x:y?a=1&b", "x:y?a=1&a=2"):
        with pytest.raises(ValueError, match="name=value"):
            split_options(wrong)
    with pytest.raises(ValueError, match="joined by `&`"):
        split_options("tar:x?ignore=npy?filter=s.parquet:top=0.3")
    with pytest.raises(ValueError, match="given twice"):
        make_source({"spec": "synthetic:10?side=32", "side": 16})


def test_a_filter_comes_behind_those_of_the_spec():
    rule = "b.parquet:min=1"
    assert with_filter("folder:x", rule) == "folder:x?filter=b.parquet:min=1"
    assert with_filter("tar:x?a=1", rule) == "tar:x?a=1&filter=b.parquet:min=1"
    both = with_filter("tar:x?filter=a.txt&a=1", rule)
    assert split_options(both)[1] == {"filter": ("a.txt", rule), "a": 1}


def test_options_beside_the_spec(tmp_path):
    (tmp_path / "t.csv").write_text("5,text\n1.png,x\n")
    assert len(make_source({"spec": f"csv:{tmp_path}/t.csv", "image_field": "5"})) == 1
    assert make_source({"spec": "synthetic:10", "side": 32})[0]["image"].shape == (32, 32, 3)
    assert set(SOURCES) >= {"openmoji", "folder", "csv", "jsonl", "arrayrecord", "tfds", "tar"}
