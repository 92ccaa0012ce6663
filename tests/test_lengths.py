"""Lengths in steps, examples and epochs: read, checked, and resolved once."""

import pytest

from clipjax.config import default_config, validate
from clipjax.lengths import Length


def steps(value, low=0, examples=1000):
    return Length(low).steps(value, "x", batch_size=64, count_examples=lambda: examples)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (7, 7),
        ("7 steps", 7),
        ("1 step", 1),
        ("0.5 steps", 1),
        ("640 examples", 10),
        ("641 examples", 11),
        ("6_400 examples", 100),
        ("12.8e9 examples", 200_000_000),
        ("0 examples", 0),
        ("2 epochs", 32),  # 31.25, rounded up
        ("0.064 epoch", 1),
    ],
)
def test_a_length_is_so_many_steps(value, wanted):
    Length().check(value, "x")
    assert steps(value) == wanted


@pytest.mark.parametrize(
    "value", ["7", "seven steps", "-1 epochs", "1e999999 epochs", "3 weeks", "steps", "", 1.5, None]
)
def test_what_is_no_length_is_named(value):
    with pytest.raises(ValueError, match=r"x = .*: expected a whole number from 0 \(steps\)"):
        Length().check(value, "x")


def test_a_length_out_of_range_says_its_steps():
    with pytest.raises(ValueError, match="x = '0 epochs' is 0 steps: expected a whole"):
        steps("0 epochs", low=1)
    with pytest.raises(ValueError, match="x = '1e20 examples' is 1562500000000000000 steps"):
        steps("1e20 examples")


def written(**lengths):
    config = default_config()
    config.batch_size, config.data.source = 100, "anything:at all"
    config.total_steps = lengths.pop("total_steps", "4 epochs")
    config.stages = ({"until_step": lengths.pop("until_step", "1 epoch"), "image_size": 32},)
    config.schedule.update(
        name="constant", warmup_steps="5e2 examples", cooldown_steps="0.5 epochs"
    )
    config.schedule.update(**lengths)
    return config


def test_a_config_resolves_its_lengths_once():
    counted = []
    settings = validate(written(), count_examples=lambda *of: counted.append(of) or 1000)
    assert settings.total_steps == 40
    assert settings.stages[0]["until_step"] == 10
    assert (settings.schedule.warmup_steps, settings.schedule.cooldown_steps) == (5, 5)
    assert counted == [("anything:at all", "config.data.source")]
    plain = validate(written(), count_examples=lambda *_: 1000)
    assert plain == settings
    with pytest.raises(ValueError, match=r"config\.stages\[0\]\.until_step = 'soon': expected a"):
        validate(written(until_step="soon"), count_examples=lambda *_: 1000)


def test_an_epoch_of_no_data_is_an_error():
    with pytest.raises(ValueError, match=r"config\.\S+ = '\S+ epochs?': an epoch is counted in"):
        validate(written())
    config = written(total_steps="400 examples", until_step=2, warmup_steps=1, cooldown_steps=1)
    assert validate(config).total_steps == 4


def test_a_cooldown_does_not_begin_in_the_warm_up():
    with pytest.raises(ValueError, match=r"config\.schedule\.cooldown_steps = 36 begins before"):
        validate(written(cooldown_steps=36), count_examples=lambda *_: 1000)


def staged(**fields):
    """Two stages of ten steps, the first with a source of its own, of 300 examples."""
    config = default_config()
    config.update({"batch_size": 10, "total_steps": 20, **fields.get("config", {})})
    config.schedule.warmup_steps = 0
    config.schedule.update(fields.get("schedule", {}))
    config.data.source = "a:1000"
    stage = {"until_step": 10, "data": {"source": "b:300"}, **fields.get("stage", {})}
    config.stages = (stage,)
    return validate(config, count_examples=lambda source, path: int(source[2:]))


def test_an_epoch_of_a_stage_is_of_its_own_source():
    stage = {"until_step": "0.3 epochs", "schedule": {"warmup_steps": "0.1 epochs"}}
    settings = staged(stage=stage)
    assert settings.stages[0]["until_step"] == 9
    assert settings.stages[0]["schedule"]["warmup_steps"] == 3
    # The same source, said by the stage, is one.
    same = {"until_step": 10, "data": {"source": "a:1000"}}
    assert staged(stage=same, config={"total_steps": "0.2 epochs"}).total_steps == 20


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"config": {"total_steps": "1 epoch"}}, r"config\.total_steps = '1 epoch'"),
        (
            {"schedule": {"warmup_steps": "0.01 epochs"}},
            r"schedule\.warmup_steps = '0.01 e",
        ),
        (
            {"config": {"optimizer": {"averages": ({"name": "a", "half_life": "1 epoch"},)}}},
            r"config\.optimizer\.averages\[0\]\.half_life = '1 epoch'",
        ),
    ],
)
def test_an_epoch_of_several_sources_is_refused(fields, path):
    told = r".*300 examples of config\.stages\[0\]\.data\.source and 1,000 examples of config\.d"
    with pytest.raises(ValueError, match=path + told):
        staged(**fields)


def test_the_configs_own_source_is_of_no_consequence_where_stages_are_all():
    schedule = {"warmup_steps": "0.1 epochs"}
    assert staged(config={"total_steps": 10}, schedule=schedule).schedule.warmup_steps == 3
    # Nor is another source of as many examples.
    other = {"until_step": 10, "data": {"source": "c:1000"}}
    assert staged(stage=other, schedule=schedule).schedule.warmup_steps == 10
