"""config.stages: what a stage may change, where it ends, and the schedule that it has."""

import numpy as np
import pytest

from clipjax.config import default_config, validate
from clipjax.config_stages import schedule_spans, stage_configs
from clipjax.experiment.stages import make_schedules
from clipjax.optim import make_schedule


def config_of(*stages, **fields):
    config = default_config()
    config.batch_size, config.total_steps, config.schedule.warmup_steps = 64, 1000, 0
    config.data.source = "synthetic:512"
    config.stages = stages
    config.update_from_flattened_dict(fields)
    return config


def stages_of(*stages, **fields):
    return stage_configs(validate(config_of(*stages, **fields), count_examples=lambda *_: 512))


def test_a_stage_is_the_config_with_its_changes():
    first, last = stages_of(
        {
            "until_step": 10,
            "image_size": 112,
            "batch_size": 128,
            "optimizer": {"learning_rate": 1e-2},
            "schedule": {"name": "linear"},
            "data": {"source": "synthetic:600"},
        }
    )
    assert (first.from_step, first.until_step, last.from_step, last.until_step) == (0, 10, 10, 1000)
    assert first.sizes == {"image_size": 112} and not last.sizes
    assert first.settings.batch_size == 128 and last.settings.batch_size == 64
    assert first.settings.optimizer.learning_rate == 1e-2
    assert first.settings.optimizer.b2 == last.settings.optimizer.b2
    assert (first.settings.schedule.name, last.settings.schedule.name) == ("linear", "cosine")
    assert first.settings.data.source == "synthetic:600"
    assert first.where("batch_size") == "config.stages[0].batch_size"
    assert first.where("optimizer.b2") == "config.optimizer.b2"
    assert last.where("batch_size") == "config.batch_size"


@pytest.mark.parametrize("sizes", [(64, 64, 64), (256, 64, 128), (1, 1000, 7)])
def test_stages_in_examples_end_with_the_first_batch_that_reaches_them(sizes):
    ends = [51_200, 60_000, 100_000]
    *earlier, own = sizes
    found = stages_of(
        *(
            {"until_step": f"{end} examples", "batch_size": size}
            for end, size in zip(ends, earlier, strict=False)
        ),
        total_steps=f"{ends[-1]} examples",
        batch_size=own,
    )
    seen = 0
    for stage, end, size in zip(found, ends, sizes, strict=True):
        before = seen
        for _ in range(stage.from_step, stage.until_step):
            assert seen < end
            seen += size
        assert seen >= end > before
    assert found[0].until_step == -(-ends[0] // sizes[0])


def test_a_length_in_examples_is_by_the_batch_of_its_stage():
    first, last = stages_of(
        {"until_step": 100, "batch_size": 256, "schedule": {"warmup_steps": "5120 examples"}},
        **{"schedule.warmup_steps": "640 examples"},
    )
    assert first.settings.schedule.warmup_steps == 20
    assert last.settings.schedule.warmup_steps == 10
    with pytest.raises(ValueError, match=r"schedule\.warmup_steps = '640 examples' is for"):
        stages_of(
            {"until_step": 100, "batch_size": 256}, **{"schedule.warmup_steps": "640 examples"}
        )
    half_life = {"name": "slow", "half_life": "3 epochs"}
    with pytest.raises(ValueError, match=r"averages\[0\].half_life = '3 epochs' is for stages"):
        stages_of({"until_step": 9, "batch_size": 8}, **{"optimizer.averages": (half_life,)})


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"batch_size": 0}, "config.stages[0].batch_size = 0"),
        ({"batch_size": 96, "micro_batch_size": 36}, "[0].micro_batch_size = 36 does not divide"),
        ({"schedule": 7}, "config.stages[0].schedule = 7: expected a dict"),
        ({"schedule": {"warmup": 7}}, "[0].schedule.warmup is unknown"),
        ({"schedule": {"warmup_steps": 50}}, "[0].schedule.warmup_steps = 50 is not below its"),
        ({"schedule": {"warmup_steps": -1}}, "[0].schedule.warmup_steps = -1"),
        ({"optimizer": {"b2": 0.9}}, "[0].optimizer.b2 is unknown; accepted here are"),
        ({"optimizer": {"learning_rate": -1.0}}, "[0].optimizer.learning_rate = -1.0"),
        ({"data": {"source": 3}}, "[0].data.source = 3"),
        ({"seed": 3}, "[0].seed is unknown"),
        ({"until_step": "0 examples"}, "[0].until_step = '0 examples' is 0 steps"),
        ({"until_step": "1e9 examples"}, "not after config.total_steps = 1000"),
    ],
)
def test_what_a_stage_may_not_be_is_named(stage, words):
    with pytest.raises(ValueError) as error:
        stages_of({"until_step": 50, **stage})
    assert words in str(error.value)


def test_the_mesh_divides_the_batch_of_every_stage():
    with pytest.raises(ValueError, match=r"stages\[0\].batch_size = 36 does not divide over conf"):
        stages_of({"until_step": 5, "batch_size": 36}, **{"mesh.data": 8})


def test_a_schedule_begins_with_the_stage_that_names_it_and_goes_on_without_one():
    own = {"optimizer": {"learning_rate": 0.5}, "schedule": {"warmup_steps": 4}}
    stages = stages_of(
        {"until_step": 20, "batch_size": 32, **own},
        {"until_step": 30},
        {"until_step": 60, "image_size": 112},
        {"until_step": 70, "schedule": {"name": "constant"}},
        total_steps=100,
        **{"optimizer.learning_rate": 0.25, "schedule.warmup_steps": 5},
    )
    spans = [[(s.from_step, s.until_step) for s in span] for span in schedule_spans(stages)]
    assert spans == [[(0, 20)], [(20, 30), (30, 60)], [(60, 70)], [(70, 100)]]
    rate = make_schedules(stages)
    parts = [
        (0, make_schedule("cosine", learning_rate=0.5, total_steps=20, warmup_steps=4)),
        (20, make_schedule("cosine", learning_rate=0.25, total_steps=40, warmup_steps=5)),
        (60, make_schedule("constant", learning_rate=0.25, total_steps=10, warmup_steps=5)),
        (70, make_schedule("cosine", learning_rate=0.25, total_steps=30, warmup_steps=5)),
    ]
    for step in range(100):
        begin, part = max((each for each in parts if each[0] <= step), key=lambda each: each[0])
        np.testing.assert_array_equal(rate(step), part(step - begin))
    assert float(rate(70)) == 0 < float(rate(69))


def test_stages_that_name_no_rate_have_the_run_s_one():
    stages = stages_of({"until_step": 20, "batch_size": 32}, {"until_step": 30}, total_steps=100)
    whole = make_schedule("cosine", learning_rate=5e-4, total_steps=100, warmup_steps=0)
    assert [float(make_schedules(stages)(step)) for step in range(100)] == [
        float(whole(step)) for step in range(100)
    ]
