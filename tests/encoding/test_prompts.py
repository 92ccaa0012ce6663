import json

import pytest
from absl import logging
from stand_ins import Source

from clipjax.encoding.prompts import (
    choose_prompts,
    prompts_of_run,
    stored_templates,
    warn_of_articles,
)


def run_of(*templates):
    return {
        "evals": {str(i): {"name": "zero_shot", "templates": t} for i, t in enumerate(templates)}
    }


def source_with(templates):
    source = Source([{}], ("cat",))
    source.templates = templates
    return source


def test_given_before_the_datasets_before_the_runs_before_simple():
    run = prompts_of_run(run_of("plain"), "x")
    own = source_with(("a {c} here",))
    assert choose_prompts("emoji", own, run).templates[1] == "{} emoji"
    assert choose_prompts(None, own, run) == (("a {} here",), "the dataset's own")
    assert choose_prompts(None, source_with(None), run) == (("{}",), "the run's: 'plain'")
    assert choose_prompts(None, Source([{}])).templates == ("a photo of a {}.",)
    assert "simple" in choose_prompts(None).origin


def test_a_run_without_templates_has_none():
    assert prompts_of_run({}, "x") is None
    assert prompts_of_run({"evals": {"r": {"name": "retrieval"}}}, "x") is None


def test_templates_of_a_file_go_into_the_checkpoint_as_text(tmp_path):
    lines, classes = tmp_path / "lines.txt", tmp_path / "classes.json"
    lines.write_text("# mine\na {} of mine\n{c}\n")
    classes.write_text(json.dumps({"cat": ["it purrs"], "dog": "it barks"}))
    for file in (lines, classes):
        stored = json.loads(json.dumps(stored_templates(str(file))))
        assert str(tmp_path) not in json.dumps(stored)
        before = choose_prompts(str(file)).templates
        file.unlink()
        assert prompts_of_run(run_of(stored), "x").templates == before
    assert stored_templates("openai_7") == "openai_7"


def test_a_file_that_a_checkpoint_names_is_not_opened(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("{} is the secret")
    with pytest.raises(ValueError, match=r"templates=FILE") as error:
        prompts_of_run(run_of(str(secret)), "runs/x")
    assert "is the secret" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "templates", "warns"),
    [
        (["a cat", "dog"], "simple", True),
        (["It rains.", "dog"], "openai_7", True),
        (["cat", "another cat"], "simple", False),
        (["a cat", "a dog"], "plain", False),
    ],
)
def test_labels_that_are_no_nouns_are_pointed_out(names, templates, warns, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    warn_of_articles(names, choose_prompts(templates))
    assert bool(said) is warns
    assert not warns or names[0] in said[0]
