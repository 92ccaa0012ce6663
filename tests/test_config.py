"""Configs: arguments, building from specs, validation with the path in the message."""

import dataclasses
import json
from pathlib import Path

import pytest
from config_files import read_config_file, shipped
from golden import GOLDEN, golden
from ml_collections import ConfigDict

from clipjax.building import ANY_MODULE, build
from clipjax.config import default_config, merge, parse_arg, to_plain, validate
from clipjax.experiment import resolve

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def valid():
    config = default_config()
    config.data.source = "synthetic:64"
    return config


def test_parse_arg_reads_values_by_the_type_of_the_default():
    arg = parse_arg("batch_size=64,smoke,lr=1,name=x=y", batch_size=8, smoke=False, lr=0.5, name="")
    assert (arg.batch_size, arg.smoke, arg.lr, arg.name) == (64, True, 1.0, "x=y")
    assert parse_arg(None, steps=3).steps == 3


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("stepz=3", ["stepz", "steps", "Did you mean"]),
        ("steps=many", ["steps", "int"]),
        ("steps=2.5", ["steps", "int", "float"]),
        ("steps", ["steps", "needs a value"]),
    ],
)
def test_parse_arg_names_what_is_wrong(arg, words):
    with pytest.raises(ValueError) as error:
        parse_arg(arg, steps=3)
    for word in words:
        assert word in str(error.value)


@dataclasses.dataclass
class Thing:
    size: int
    rate: float = 0.5
    image_size: int = 0


def test_build_takes_the_constructor_as_the_schema():
    thing = build({"name": "thing", "size": 3}, {"thing": Thing}, image_size=7, unused=1)
    assert thing == Thing(size=3, image_size=7)
    assert build({"name": "fractions:Fraction", "numerator": 3}, {}, plugins=ANY_MODULE) == 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"size": 3}, ["config.x.name", "thing"]),
        ({"name": "thang", "size": 3}, ["config.x.name", "thang", "Did you mean 'thing'"]),
        ({"name": "thing", "sise": 3}, ["config.x.sise", "size", "Did you mean"]),
        ({"name": "thing"}, ["config.x", "size"]),
        ({"name": "no_such_module:Thing"}, ["no_such_module"]),
    ],
)
def test_build_names_the_path_the_key_and_the_fields(spec, words):
    with pytest.raises(ValueError) as error:
        build(spec, {"thing": Thing}, path="config.x", plugins=ANY_MODULE)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("batch_size", 0, ["config.batch_size", "0"]),
        ("dtype", "float8", ["config.dtype", "float8", "bfloat16"]),
        ("remat", "some", ["config.remat", "dots"]),
        ("data.source", "", ["config.data.source"]),
        ("mesh.fsdp", 0, ["config.mesh"]),
        ("micro_batch_size", 1000, ["config.micro_batch_size", "1024"]),
        ("schedule.warmup_steps", 10_000, ["warmup_steps", "total_steps"]),
    ],
)
def test_validate_names_the_path_and_what_is_allowed(path, value, words):
    config = valid()
    validate(config)
    with config.unlocked():
        config.update_from_flattened_dict({path: value})
    with pytest.raises(ValueError) as error:
        validate(config)
    for word in words:
        assert word in str(error.value)


def test_validate_refuses_unknown_missing_and_mistyped_fields():
    config = valid()
    config.optimizer.learning_rat = 1.0
    with pytest.raises(ValueError, match=r"optimizer\.learning_rat is unknown.*learning_rate"):
        validate(config)
    config = valid()
    del config.optimizer.eps
    with pytest.raises(ValueError, match=r"config\.optimizer\.eps is missing"):
        validate(config)
    config = ConfigDict({**valid().to_dict(), "optimizer": "adamw"})
    with pytest.raises(ValueError, match=r"config\.optimizer = 'adamw'"):
        validate(config)
    config = valid()
    config.evals.zero_shot = {"name": "zero_shot"}
    with pytest.raises(ValueError, match=r"config\.evals\.zero_shot\.source"):
        validate(config)


def test_a_batch_that_does_not_divide_is_refused_before_any_device():
    config = valid()
    config.mesh.data, config.mesh.fsdp = 3, 5
    with pytest.raises(ValueError, match=r"batch_size = 1024 .* 3 x 5"):
        validate(config)


def test_merge_keeps_the_base_where_the_change_is_none():
    assert merge({"a": 1, "b": {"c": 2}}, {"a": None, "b": {"d": 3}}) == {
        "a": 1,
        "b": {"c": 2, "d": 3},
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_is_whole_and_opens_with_its_command(path):
    get_config = read_config_file(path)
    kept, found = golden(f"configs/{path.stem}.json", whole(get_config()))
    assert found == kept, "a recipe is another one; UPDATE_GOLDEN=1 writes it down"
    assert "clipjax train " in path.read_text()
    assert f"configs/{path.name}" in path.read_text()
    with pytest.raises(ValueError, match="no_such_argument"):
        get_config("no_such_argument=1")


def whole(config):
    """A config that can be run, as plain data, with its whole model."""
    plain = to_plain(config)
    validate(config, needs_data=False)
    if config.model.name != "checkpoint":
        plain["model"] = resolve(config, to_run=False).spec
    return plain


def mixed(config):
    return [part["spec"] for part in json.loads(config.data.source.removeprefix("mix:"))]


def test_a_recipe_is_chosen_without_the_unseen_names():
    config = shipped("quickstart", "validation")
    specs = [spec.partition("?")[0] for spec in mixed(config)]
    assert specs == ["openmoji:fit", "twemoji:fit"]
    asked = [spec.source for spec in config.evals.values()]
    assert asked == ["openmoji:validation", "twemoji:validation"]
    assert [spec.partition("?")[0] for spec in mixed(shipped("quickstart"))] == [
        *("openmoji:train", "twemoji:train")
    ]
    assert shipped("quickstart").evals.zero_shot.source == "openmoji:unseen"


def test_every_golden_config_is_that_of_a_shipped_one():
    assert [path.stem for path in CONFIGS] == sorted(x.stem for x in GOLDEN.glob("configs/*.json"))
