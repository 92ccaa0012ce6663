"""Which members of a record are the picture and the captions, and where a key ends."""

import json
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from archives import png, tar

from clipjax.cli import data as data_cli
from clipjax.data import SampleError, make_source
from clipjax.data.inspect.checking import check
from clipjax.data.storage.files import stat
from clipjax.data.storage.paths import data_path
from clipjax.data.tar import index as tar_index
from clipjax.data.tar.index import make_index

pytestmark = pytest.mark.usefixtures("cache")


def record(key, number, **members):
    yield f"{key}.input.png", png(number)
    yield f"{key}.target.png", png(number + 100)
    for name, content in members.items():
        yield f"{key}.{name.replace('_', '.')}", content.encode()


def findings(spec):
    return [finding.what for checked, _ in check(spec) for finding in checked.findings]


def test_fields_are_members_of_any_name(tmp_path):
    about = json.dumps({"caption": "from caption", "title": "a title"})
    members = [*record("0", 0, txt="short", long_txt="long", json=about), *record("1", 1, txt="s")]
    spec = f"tar:{tar(tmp_path / 'a.tar', members)}"
    with pytest.raises(ValueError, match=r"'input.png' is unknown: .*\?image_field=input.png"):
        make_source(spec)
    declared = f"{spec}?ignore=target.png"
    with pytest.raises(ValueError, match=r"'input.png' is unknown: .*\?image_field=input.png"):
        make_source(declared)
    given = f"{spec}?image_field=input.png"  # what is given already is no advice
    with pytest.raises(ValueError, match=r"'target.png' is unknown: .*ignore=") as caught:
        make_source(f"{given}&ignore=long.txt")
    assert "image_field" not in str(caught.value)
    with pytest.raises(ValueError, match=r"'long.txt' is unknown: .*ignore=") as caught:
        make_source(f"{given}&ignore=target.png&text_field=json:title")
    assert "text_field" not in str(caught.value)
    for image in ("input.png", "input", ".INPUT.PNG"):
        source = make_source(f"{declared},long.txt&image_field={image}")
        assert [source[i]["image"] for i in range(2)] == [png(0), png(1)]
        assert source[0]["text"] == "short"
    declared += "&image_field=input&text_field="
    seen = {}
    for field in ("txt", "long.txt", "json", "json:title", "json:title,long.txt"):
        ignored = "" if "long" in field else "&ignore=target.png,long.txt"
        spec_ = (declared.replace("?ignore=target.png&", "?") if ignored else declared) + field
        source = make_source(spec_ + ignored)
        seen[field] = source[0]["text"]
        fingerprints = {source.fingerprint(), make_source(spec_ + ignored).fingerprint()}
        assert len(fingerprints) == 1
    assert seen == {
        "txt": "short",
        "long.txt": "long",
        "json": "from caption",
        "json:title": "a title",
        "json:title,long.txt": {"json:title": "a title", "long.txt": "long"},
    }
    with pytest.raises(SampleError, match="no caption"):
        make_source(declared + "long.txt")[1]
    assert findings(declared + "long.txt") == [
        "1 of 2 examples are unusable [missing_text]: 1 (the shard has no caption of this key)"
    ]
    # One of several texts may be missing.
    both = declared.replace("ignore=target.png", "ignore=target.png,long.txt") + "json:title,txt"
    assert findings(both) == [] and make_source(both)[1]["text"] == {"txt": "s"}


@pytest.mark.parametrize(
    "options, message",
    [
        ("image_field=photo", "holds no member of image_field='photo'; .* png, txt"),
        (
            "text_field=title",
            "holds no member of text_field='title'.* json, png, txt; .*json:title",
        ),
        ("text_field=txt:title", "text_field='txt:title' of tar: a member"),
        ("key_ends=dot", "key_ends='dot' of tar: allowed are first_dot, last_dot"),
        ("captions=both", "captions='both' of tar: `lines` makes"),
    ],
)
def test_fields_that_are_none(tmp_path, options, message):
    path = tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.txt", b"a"), ("0.json", b"{}")])
    with pytest.raises(ValueError, match=message):
        make_source(f"tar:{path}?{options}")


def test_keys_with_dots(tmp_path, capsys):
    members = [("a/x.V1.png", png(1)), ("a/x.V1.txt", b"one"), ("a/x.v1.png", png(2))]
    path = tar(tmp_path / "a.tar", [*members, ("a/x.v1.txt", b"two"), ("a/y.txt", b"no picture")])
    with pytest.raises(ValueError, match="key 'a/x' twice"):
        make_source(f"tar:{path}")
    spec = f"tar:{path}?key_ends=last_dot"
    with flagsaver.flagsaver():
        assert data_cli.main(flags.FLAGS(["clipjax data", "index", spec])) == 0
    assert "indexed 1 shards" in capsys.readouterr().out
    source = make_source(spec)
    assert list(source.keys()) == ["a.tar/a/x.V1", "a.tar/a/x.v1", "a.tar/a/y"]
    assert [source[i]["text"] for i in range(2)] == ["one", "two"]
    assert findings(spec) == [
        "1 of 3 examples are unusable [missing_image]: a/y (the shard has no picture of this key)"
    ]
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["a.tar", "a.tar.last_dot.index"]


def test_more_extensions_than_kinds_of_files_are_keys_with_dots(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "MAX_HEADER", 2000)
    members = [m for n in range(99) for m in ((f"x.{n}.png", png(n)), (f"x.{n}.txt", b"a"))]
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=r"198 extensions, .*\?key_ends=last_dot"):
        make_source(f"tar:{path}")
    assert len(make_source(f"tar:{path}?key_ends=last_dot")) == 99


def test_what_macos_packs_beside_files_is_skipped_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    members = [("d/0.png", png(0)), ("d/._0.png", b"resource"), ("._d", b"x"), ("d/0.txt", b"a")]
    for end in ("", "?key_ends=last_dot"):
        source = make_source(f"tar:{tar(tmp_path / 'a.tar', members)}{end}")
        assert list(source.keys()) == ["a.tar/d/0"] and source[0]["image"] == png(0)
        assert "2 members are not used" in caplog.text
        caplog.clear()
    assert findings(f"tar:{tmp_path}/a.tar") == []
    assert make_index(stat(data_path(str(tmp_path / "a.tar")))).count(b'"hidden":2') == 1


def test_an_index_of_one_kind_of_keys_does_not_serve_the_other(tmp_path):
    path = tar(tmp_path / "a.tar", [("x.png", png(1)), ("x.txt", b"one")])
    sources = [make_source(f"tar:{path}{end}") for end in ("", "?key_ends=last_dot")]
    assert sources[0].fingerprint() != sources[1].fingerprint()
    assert len(list(tmp_path.glob("*.index"))) == 2
    path = tar(tmp_path / "b.tar", [("x.1.png", png(1)), ("x.1.txt", b"one")])
    with pytest.raises(ValueError, match=r"'1.png' is unknown: .*\?key_ends=last_dot"):
        make_source(f"tar:{path}")
    assert make_source(f"tar:{path}?key_ends=last_dot")[0]["text"] == "one"


def test_classes_that_count_from_one(tmp_path):
    members = [m for n in (1, 2) for m in ((f"{n}.png", png(n)), (f"{n}.cls", str(n).encode()))]
    spec = f"tar:{tar(tmp_path / 'a.tar', members)}?class_names=cat,dog"
    # No SampleError: it would be replaced and counted, and all others keep their neighbours' names.
    with pytest.raises(ValueError, match=r"2 names are for 0 to 1: .*\?first_label=1") as caught:
        make_source(spec)[1]
    assert not isinstance(caught.value, SampleError)
    with pytest.raises(SampleError, match="the class is '2' of 2"):
        make_source(spec + "&first_label=0")[1]
    source = make_source(spec + "&first_label=1")
    assert [source[i]["text"] for i in range(2)] == ["cat", "dog"]
    assert findings(spec + "&first_label=1") == [] and findings(spec) != []
