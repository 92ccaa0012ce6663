import hashlib
import re
from importlib import resources

import pytest

from clipjax.data.named_lists import load_class_names
from clipjax.evals.templates import fill_template, load_templates


def test_the_packaged_data_is_what_its_readme_says():
    folder = resources.files("clipjax.data") / "prompts"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\w+\.json)` \|.*\| `([0-9a-f]{64})` \|", readme)
    assert {name for name, _ in rows} == {
        f.name for f in folder.iterdir() if f.name.endswith(".json")
    }
    for name, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_published_lists():
    assert len(load_templates("openai_80")) == len(set(load_templates("openai_80"))) == 80
    assert load_templates("imagenet") == load_templates("openai_80")
    assert load_templates("openai_80")[0] == "a bad photo of a {}."
    assert load_templates("openai_80")[-1] == "a tattoo of the {}."
    assert len(load_templates("openai_7")) == 7
    names = load_class_names("imagenet")
    assert len(names) == 1000
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet paper")


def test_simple_lists():
    assert load_templates("simple") == ("a photo of a {}.",)
    assert load_templates("plain") == ("{}",)
    assert load_templates(["{} one", "two {}"]) == ("{} one", "two {}")


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.txt", "# mine\na {}.\n\n  the {}.  \n"), ("t.json", '["a {}.", "the {}."]')],
)
def test_files(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert load_templates(str(path)) == ("a {}.", "the {}.")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "a {}.\n\na photo\n", r"t\.txt, line 3: .*'a photo'.* 0 times"),
        ("t.txt", "{} and {}\n", r"line 1: .* 2 times"),
        ("t.txt", "\n# only this\n", "holds no templates"),
        ("t.json", '["a {}", "b"]', r"entry 2: .*'b'"),
        ("t.json", '{"a": 1}', "not a JSON list of strings"),
        ("t.json", "[", "not JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_templates(str(path))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"'openai80'.*openai_80.*simple"):
        load_templates("openai80")
    with pytest.raises(ValueError, match="empty"):
        load_templates([])


def test_braces_in_a_class_name_are_text():
    assert fill_template("a {}!", "{0} {} {x}") == "a {0} {} {x}!"
