import hashlib
import json
import re
from importlib import resources

import pytest

from clipjax.data.classes.named_lists import known_class_names, load_class_names
from clipjax.encoding.templates import (
    fill_template,
    fill_templates,
    known_templates,
    load_templates,
)


def test_the_packaged_data_is_what_its_readme_says():
    folder = resources.files("clipjax.data") / "prompts"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\w+\.json(?:\.gz)?)` \|.*\| `([0-9a-f]{64})` \|", readme)
    assert {name for name, _ in rows} == {
        f.name for f in folder.iterdir() if f.suffix in (".json", ".gz")
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


@pytest.mark.parametrize(
    ("name", "classes", "first", "last", "templates", "template"),
    [
        ("food101", 101, "apple pie", "waffles", 1, "a photo of {}, a type of food."),
        ("sun397", 397, "abbey", "youth hostel", 2, "a photo of a {}."),
        ("cars", 196, "AM General Hummer SUV 2000", "smart fortwo Convertible 2012", 8, None),
        ("birdsnap", 500, "Acadian Flycatcher", "Zone tailed Hawk", 1, None),
        ("clevr_count_all", 8, "three", "ten", 1, "a picture of {} objects"),
        ("clip/clevr_count_all", 8, "10", "9", 1, "a photo of {} objects."),
        ("imagenet1k/it", 1000, "una tinca", "una carta igienica", 49, "una brutta foto di {}"),
        ("imagenet1k", 1000, "tench", "toilet paper", 80, "a bad photo of a {}."),
        ("imagenet-a", 200, "stingray", "acorn", 80, None),
        ("objectnet", 113, "alarm clock", "wok", 80, None),
    ],
)
def test_names_and_templates_of_published_sets(name, classes, first, last, templates, template):
    names, found = load_class_names(name), load_templates(name)
    assert (len(names), names[0], names[-1], len(found)) == (classes, first, last, templates)
    assert template is None or found[0] == template
    assert len(fill_templates(found, names)) == classes


def test_a_class_that_the_paper_gives_several_names_has_prompts_of_each():
    prompts = fill_templates(load_templates("clip/fer2013"), load_class_names("clip/fer2013"))
    assert len(prompts) == 7 and {len(texts) for texts in prompts} == {6, 12, 18}
    assert "a photo of a smiling looking face." in prompts[3]
    assert len(fill_templates(load_templates("fer2013"), load_class_names("fer2013"))[3]) == 6


def test_every_packaged_set_makes_prompts():
    names = known_class_names()
    for name, found in known_templates().items():
        prompts = (
            fill_templates(load_templates(name), load_class_names(name))
            if (name in names)
            else fill_templates(load_templates(name), ["cat"])
        )
        assert found and all(texts and all(t.strip() for t in texts) for texts in prompts)


@pytest.mark.parametrize(
    ("load", "name", "near"),
    [(load_class_names, "food_101", "food101"), (load_templates, "imagenet1k/fr", "imagenet1k/it")],
)
def test_a_name_that_is_not_known_lists_near_ones(load, name, near):
    with pytest.raises(ValueError, match=f"{name}.*the nearest are .*{near}"):
        load(name)


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
        ("t.txt", "{} and {c}\n", r"line 1: .*'\{\}' or '\{c\}' 2 times"),
        ("t.json", '{"a": 1}', "prompts of 'a' are 1, expected a list"),
        ("t.json", '{"a": []}', r"prompts of 'a' are \[\], expected a list"),
        ("t.json", '{"a": ["x", " "]}', "prompts of 'a' are .*expected a list"),
        ("t.json", "{}", "holds no class"),
        ("t.json", "null", "holds null"),
        (
            "t.json",
            '{"a": {"x": ["y"]}, "b": {"x": ["y"]}}',
            r"write .*t\.json:NAME, one of 'a', 'b'",
        ),
        ("t.json", "[", "not JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_templates(str(path))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"'openai80'.*nearest are openai_80"):
        load_templates("openai80")
    with pytest.raises(ValueError, match="empty"):
        load_templates([])


def test_braces_in_a_class_name_are_text():
    assert fill_template("a {}!", "{0} {} {x}") == "a {0} {} {x}!"


def test_templates_of_clip_benchmark_are_those_of_python_format(tmp_path):
    path = tmp_path / "zeroshot_classification_templates.txt"
    path.write_text("a photo of a {c}.\n{c}\n", encoding="utf-8")
    assert load_templates(str(path)) == ("a photo of a {}.", "{}")
    name = "{c} 100%"
    expected = [t.format(c=name) for t in ("a photo of a {c}.", "{c}")]
    assert fill_templates(load_templates(str(path)), [name]) == [tuple(expected)]


PROMPTS = {
    "cat": ["A cat purrs.", "It has whiskers."],
    "dog": ["A dog, a {c}, barks."],
    "owl": "Owl",
}


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (PROMPTS, ""),
        ({"pets": PROMPTS}, ""),  # as CLIP_benchmark packages those of CuPL
        ({"pets": PROMPTS, "cars": {"tram": ["x"]}}, ":pets"),
    ],
)
def test_prompts_of_each_class(tmp_path, content, entry):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    found = load_templates(f"{path}{entry}")
    assert fill_templates(found, ["dog", "cat"]) == [
        ("A dog, a dog, barks.",),
        ("A cat purrs.", "It has whiskers."),
    ]
    assert fill_templates(found, ["owl"]) == [("Owl",)]
    assert load_templates(found) == found
    with pytest.raises(ValueError, match=r"of 3 classes \('cat'.* 2 of the 3 .*\('tabby', 'hen'\)"):
        fill_templates(found, ["tabby", "owl", "hen"])


def test_lists_of_several_datasets_in_one_file(tmp_path):
    path = tmp_path / "en.json"
    path.write_text('{"pets": ["a {c}"], "cars": ["the {c}", "{c}"]}', "utf-8")
    assert load_templates(f"{path}:cars") == ("the {}", "{}")
    with pytest.raises(ValueError, match=r"no templates under the name 'pet'; it has pets, cars"):
        load_templates(f"{path}:pet")
    with pytest.raises(ValueError, match=r"'tabby'.*written FILE\.json:NAME"):
        fill_templates(load_templates(str(path)), ["tabby"])
    names = tmp_path / "names.json"
    names.write_text('{"pets": ["cat", "dog"], "cars": ["tram"]}', "utf-8")
    assert load_class_names(f"{names}:pets") == ("cat", "dog")
    with pytest.raises(ValueError, match=r"not a JSON list .*names\.json:NAME"):
        load_class_names(str(names))


def test_every_line_of_a_class_file_counts(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("#one\ntwo\r\nNEL\u2028line\n\n\n", encoding="utf-8")
    assert load_class_names(str(path)) == ("#one", "two", "NEL\u2028line")
    path.write_text("one\n\nthree\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes\.txt, line 2 is blank"):
        load_class_names(str(path))
