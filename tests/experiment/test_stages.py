"""Stages of a run: one compilation each, the same run however it is cut, the same parameters."""

import contextlib
import functools
import io
import json
import logging
import time

import jax
import numpy as np
import pytest
from config_files import shipped
from counting import wait_until

from clipjax.checkpoint import load_params
from clipjax.data.loading.rows import RowMaker
from clipjax.device_clock import DeviceClock
from clipjax.experiment import build_experiment, build_program, resolve
from clipjax.faults import InjectedFault
from clipjax.progress import ProgressBar
from clipjax.train import train
from clipjax.trees import flatten_with_names

# What one run compiled, the next one loads; either is counted.
COMPILED = "/jax/core/compile/backend_compile_duration"
SLOW_S = 0.1  # what an example takes
CHANGES = (
    {"batch_size": 16, "schedule": {"name": "linear", "warmup_steps": 1}},
    {
        "batch_size": 4,
        "optimizer": {"learning_rate": 5e-4, "freeze": ("^text_",)},
        "loss": {"positives": "equal_captions"},
        "schedule": {"name": "constant", "warmup_steps": 0},
        "data": {"source": "synthetic:300"},
    },
)
BATCH_SIZES = (16, 4, 8)


def smoke_config(stages=True, **changes):
    """configs/smoke.py in nine steps of three stages, with one block a tower.

    The first two have other batches, rates and data than the last one, too.
    """
    config = shipped("smoke", f"steps=9,batch_size=8{',stages' if stages else ''}")
    config.schedule.warmup_steps = 2
    for stage, other in zip(config.stages, CHANGES, strict=False):
        stage.update(other)
    config.model.image.depth = config.model.text.depth = 1
    config.checkpoint.every_steps = 3
    config.scan_layers, config.remat = False, "none"  # these compile fastest
    config.tensorboard = config.report = False
    config.hang_timeout_s = None
    del config.evals.zero_shot
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def run(config, workdir):
    """Trains on one of the simulated devices: eight take four times as long to compile for."""
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(build_program, devices=jax.devices()[:1])
        patch.setattr("clipjax.experiment.run.build_program", one)
        experiment = build_experiment(resolve(config), workdir)
    return train(experiment)


@contextlib.contextmanager
def compiled_steps():
    """Seconds of each compilation of a step inside."""
    seconds = []

    def listen(event, duration, fun_name="", **_):
        if event == COMPILED and fun_name == "jit(step)":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seconds
    jax.monitoring.unregister_event_duration_listener(listen)


@contextlib.contextmanager
def compilations_of_an_hour():
    """The clock of the loop goes forward by an hour at each compilation of a step."""
    hours = []

    class Clock:
        def monotonic(self):
            return time.monotonic() + 3600 * len(hours)

    def listen(event, duration, fun_name="", **_):
        if event == COMPILED and fun_name == "jit(step)":
            hours.append(1)

    jax.monitoring.register_event_duration_secs_listener(listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipjax.step_log.time", Clock())
        yield
    jax.monitoring.unregister_event_duration_listener(listen)


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(state))]


def read_metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def read_losses(workdir):
    return {step: row["loss"] for step, row in read_metrics(workdir).items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing disturbed: workdir, last state, seconds of compilations, log."""
    workdir = tmp_path_factory.mktemp("reference")
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    absl_logger = logging.getLogger("absl")
    absl_logger.addHandler(handler)
    level = absl_logger.level
    absl_logger.setLevel(logging.INFO)
    progress = functools.partial(ProgressBar, stream=log, interval_s=0)
    with compiled_steps() as compiled, compilations_of_an_hour(), pytest.MonkeyPatch.context() as p:
        p.setattr("clipjax.train.ProgressBar", progress)
        state = leaves(run(smoke_config(), workdir))
    absl_logger.setLevel(level)
    absl_logger.removeHandler(handler)
    return workdir, state, compiled, log.getvalue()


def test_the_step_compiles_once_a_stage_and_the_log_says_which(reference):
    workdir, _, compiled, log = reference
    assert len(compiled) == 3
    for text in (
        "stage 1 of 3, steps 0 to 2: 16 pixels, 8 tokens, patch dropout 0.5",
        "stage 2 of 3, steps 3 to 5: 24 pixels, 12 tokens, patch dropout 0",
        "stage 3 of 3, steps 6 to 8: 32 pixels, 16 tokens, patch dropout 0",
    ):
        assert log.count(text) == 1
    metrics = read_metrics(workdir)
    assert [row["stage"] for row in metrics.values()] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    lines = [line for line in log.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 1/9") and len(lines) >= 9
    assert lines[0].endswith(f"loss {metrics[1]['loss']:.4g}")
    assert all("  loss " in line for line in lines)


def test_each_stage_has_its_schedule_and_its_batches(reference):
    rates = [row["learning_rate"] for row in read_metrics(reference[0]).values()]
    wanted = [0, 2e-3, 1e-3, *[5e-4] * 3, 0, 1e-3, 2e-3]
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)
    program = build_program(resolve(smoke_config()), jax.devices()[:1])
    assert [program.batch_of(stage)["text"].shape[0] for stage in program.stages] == [16, 4, 8]
    assert [program.num_examples(step) for step in (0, 2, 3, 5, 6, 9)] == [0, 32, 48, 56, 60, 84]


def test_what_a_stage_freezes_stays_and_moves_again_after_it(reference):
    saved = [load_params(reference[0] / "checkpoints" / str(step)) for step in (3, 6, 9)]
    first, second, last = (dict(flatten_with_names(params)) for params in saved)
    texts = {name for name in last if name.startswith("text_")}
    assert 0 < len(texts) < len(last)
    stayed = {name for name in last if np.array_equal(first[name], second[name])}
    assert stayed == texts
    assert not any(np.array_equal(second[name], last[name]) for name in last)


@pytest.mark.parametrize(
    ("steps", "compilations"),
    [
        # Stage 1 and 2; from step 4 stages 2 and 3.
        ((5,), [2, 2]),
        # Stage 1; from step 2 stages 1 and 2; from step 4 stages 2 and 3; from step 6 stage 3.
        pytest.param((3, 5, 7), [1, 2, 2, 1], marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_in_any_stage_ends_the_same_to_the_bit(
    reference, monkeypatch, tmp_path, steps, compilations
):
    """Saves at 2, 4, 6, 8; step 6 is where the last stage begins."""
    monkeypatch.setattr("clipjax.faults.fired", set())
    config = smoke_config(**{"checkpoint.every_steps": 2})
    num_compiled = []
    for step in (*steps, None):
        with compiled_steps() as compiled:
            if step is None:
                monkeypatch.delenv("CLIPJAX_FAULT")
                state = leaves(run(config, tmp_path))
            else:
                monkeypatch.setenv("CLIPJAX_FAULT", f"raise@loop.step:step={step}")
                with pytest.raises(InjectedFault):
                    run(config, tmp_path)
        num_compiled.append(len(compiled))
    assert num_compiled == compilations
    assert read_losses(tmp_path) == read_losses(reference[0])
    for found, wanted in zip(state, reference[1], strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    """A run whose first stage ends a step later, on data that are slow to come."""
    workdir = tmp_path_factory.mktemp("later")
    config = smoke_config()
    config.stages = ({**config.stages[0], "until_step": 4}, config.stages[1])
    config.data.prefetch = 0  # nothing is made while a step compiles
    make_example, clocks = RowMaker.make_row, []

    class Watched(DeviceClock):
        def __init__(self):
            super().__init__()
            clocks.append(self)

    def make_slowly(*args):
        for clock in clocks:  # the devices have nothing left to do, then the data take a while
            wait_until(lambda: clock.idle_s(now := time.monotonic(), now + 1) > 0)  # noqa: B023
        time.sleep(SLOW_S)
        return make_example(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipjax.train.DeviceClock", Watched)
        patch.setattr(RowMaker, "make_row", make_slowly)
        run(config, workdir)
    return workdir


@pytest.mark.slow
def test_the_comparison_sees_a_stage_that_ends_a_step_later(reference, later):
    """Negative control."""
    found, wanted = read_losses(later), read_losses(reference[0])
    assert [found[step] == wanted[step] for step in range(1, 5)] == [True] * 3 + [False]


def test_the_clock_stands_still_while_a_step_compiles(reference):
    """With the compilation in the clock, the first step would take an hour."""
    assert 16 / read_metrics(reference[0])[1]["samples_per_s"] < 3600


@pytest.mark.slow
def test_the_devices_wait_for_slow_data(later):
    for step, row in read_metrics(later).items():
        assert row["data_wait_fraction"] <= 1
        size = BATCH_SIZES[int(row["stage"])]
        if step % 3:  # at a save the line is written before the next batch is asked for
            waited_s = row["data_wait_fraction"] * size / row["samples_per_s"]
            assert waited_s > 0.9 * SLOW_S  # a sleep may take longer, and not less


@pytest.mark.slow
def test_a_stage_that_changes_nothing_is_no_stage(tmp_path):
    config = smoke_config(stages=False)
    plain = leaves(run(config, tmp_path / "plain"))
    config.stages = (
        {"until_step": 3, "image_size": 32, "context_length": 16, "patch_dropout": 0.0},
        {"until_step": 5},
    )
    with compiled_steps() as compiled:
        staged = leaves(run(config, tmp_path / "staged"))
    assert len(compiled) == 1
    assert read_losses(tmp_path / "plain") == read_losses(tmp_path / "staged")
    for found, wanted in zip(staged, plain, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_last_stage_is_the_model_s_own_size_and_the_checkpoint_knows_no_other(reference):
    program = build_program(resolve(smoke_config()), jax.devices()[:1])
    assert program.batch_of(program.stages[-1])["image"].shape == (8, 32, 32, 3)
    assert program.batch_of(program.stages[-1])["text"].shape == (8, 16)
    assert program.stages[2].step is not program.stages[1].step
    assert [program.stage_index(step) for step in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    manifest = json.loads((reference[0] / "checkpoints" / "3" / "manifest.json").read_text())
    assert manifest["config_sha256"] == resolve(smoke_config()).config_sha256
    model = manifest["contract"]["model"]
    assert (model["image_size"], model["text"]["context_length"]) == (32, 16)
    shapes = {leaf["name"]: leaf["shape"] for leaf in manifest["leaves"]}
    assert shapes["params/image_encoder/position_embedding"] == [16, 32]


def with_stages(*stages, **model):
    config = smoke_config(stages=False)
    config.stages = stages
    for tower, fields in model.items():
        config.model[tower] = fields
    return config


RESNET = {"name": "modified_resnet", "layers": [1, 1, 1, 1], "width": 8, "num_heads": 2}
SMALL_RESNET = {"image_size": 64, "image": {**RESNET, "output_dim": 32}}
SMALL_RESNET["image_projection"] = "none"
EFFICIENTNET = {"name": "efficientnet", "width_factor": 0.2, "depth_factor": 0.1}


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"until_step": 5, "image_sise": 16}, ["[1].image_sise", "Did you mean 'image_size'"]),
        ({"image_size": 16}, ["[1].until_step is missing"]),
        ({"until_step": 5.0}, ["[1].until_step = 5.0", "whole number"]),
        ({"until_step": 3}, ["[1].until_step = 3", "above 3"]),
        ({"until_step": 10}, ["[1].until_step = 10", "config.total_steps = 9"]),
        ({"until_step": 5, "image_size": 20}, ["[1].image_size = 20", "patch, 8", "32"]),
        ({"until_step": 5, "image_size": 40}, ["[1].image_size = 40", "config.model.image_size"]),
        ({"until_step": 5, "image_size": 0}, ["[1].image_size = 0"]),
        ({"until_step": 5, "context_length": 17}, ["[1].context_length = 17", "1 to 16"]),
        ({"until_step": 5, "patch_dropout": 1.0}, ["[1].patch_dropout = 1.0", "[0, 1)"]),
        ({"until_step": 5, "patch_dropout": True}, ["[1].patch_dropout = True", "finite number"]),
        (7, ["[1] = 7", "dict"]),
    ],
)
def test_bad_stages_are_named(stage, words):
    good = {"until_step": 3, "image_size": 16}
    assert [(s.from_step, s.until_step) for s in resolve(with_stages(good)).stages] == [
        (0, 3),
        (3, 9),
    ]
    with pytest.raises(ValueError) as error:
        resolve(with_stages(good, stage))
    for word in ("config.stages", *words):
        assert word in str(error.value)


def test_a_tower_with_a_table_of_one_size_is_refused():
    resnet = SMALL_RESNET
    with pytest.raises(ValueError, match=r"stages\[0\].image_size: .*'modified_resnet'.*efficient"):
        build_program(resolve(with_stages({"until_step": 3, "image_size": 32}, **resnet)))
    with pytest.raises(ValueError, match=r"stages\[0\]: .*image_size = 48: .* multiple of 32"):
        build_program(resolve(with_stages({"until_step": 3, "image_size": 48}, **resnet)))
    with pytest.raises(ValueError, match=r"stages\[0\].patch_dropout = 0.5: 'modified_resnet'"):
        build_program(resolve(with_stages({"until_step": 3, "patch_dropout": 0.5}, **resnet)))


@pytest.mark.slow
def test_other_stages_of_such_a_tower_and_of_one_without_a_table_are_built():
    build_program(resolve(with_stages({"until_step": 3, "context_length": 8}, **SMALL_RESNET)))
    build_program(resolve(with_stages({"until_step": 3, "image_size": 16}, image=EFFICIENTNET)))


def test_a_text_too_short_for_the_tokenizer(tmp_path):
    config = with_stages({"until_step": 3, "context_length": 2})
    with pytest.raises(ValueError, match=r"config.stages\[0\].context_length = 2: .*at least 3"):
        build_experiment(resolve(config), tmp_path)
