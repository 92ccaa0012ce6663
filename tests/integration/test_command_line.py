"""What a person types, and what comes back: one line that says what, where and what to do."""

import os

import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.batch_sise=64"], ["batch_sise", "batch_size"]),
        # The others of this kind: tests/test_config.py, tests/integration/test_config_flags.py.
        pytest.param(["--config.batch_size=many"], ["batch_size"], marks=pytest.mark.slow),
        (["--config.data.source=folder:/nowhere/at/all"], ["/nowhere/at/all"]),
        pytest.param(
            ["--config.evals.zero_shot.source=tfdz:cifar10"],
            ["config.evals.zero_shot", "tfdz"],
            marks=pytest.mark.slow,
        ),
        (["--config.mesh.data=2"], ["config.mesh", "devices"]),
        pytest.param(
            ["--config.mesh.data=1", "--config.mesh.fsdp=5"],
            ["config.batch_size", "fsdp"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["--config.loss.name=clop"], ["clop", "clip"], marks=pytest.mark.slow),
        (["--config.init.checkpoint=/nowhere"], ["/nowhere", "no checkpoint"]),
        (["--workdir=gs://bucket/run"], ["gs://bucket/run is in a bucket", "mount the bucket"]),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_error(train_here, tmp_path, flags, words):
    told = train_here(tmp_path / "run", *flags)
    last = "\n".join(told.strip().splitlines()[-3:])
    for word in words:
        assert word in last, told
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("configs/finetune.py:mode=lot", ["mode", "full, lit"]),
        pytest.param(
            *("configs/smoke.py:stepz=3", ["stepz", "Did you mean 'steps'"]),
            marks=pytest.mark.slow,  # also in tests/docs/test_blocks.py
        ),
        ("configs/nope.py", ["configs/nope.py"]),
    ],
)
def test_bad_config_arguments_show_no_traceback(command, tmp_path, config, words):
    done = command("train", "--config", config, "--workdir", tmp_path / "run")
    assert done.code == 1 and "Traceback" not in done.err
    for word in words:
        assert word in done.err


def test_classify_needs_only_the_checkpoint(command, reference, tmp_path):
    """As `clipjax eval` does: tests/integration/test_evaluate_command.py."""
    picture = tmp_path / "red.png"
    Image.fromarray(np.full((40, 50, 3), (255, 0, 0), np.uint8)).save(picture)
    flags = ("--labels", "a red one, blue", "--label=red, round", "--templates=")
    done = command("classify", "--checkpoint", reference, *flags, picture)
    assert done.code == 0, done.err
    assert str(picture) in done.out and "a red one" in done.out and "%" in done.out
    assert "red, round" in done.out
    assert "templates: the run's: 'plain'" in done.err


def test_eval_flag_evaluates_without_training(clipjax, train_here, reference):
    before = (reference / "metrics.jsonl").read_bytes()
    done = clipjax.train(reference, "--eval=zero_shot")
    assert "zero_shot/synthetic_128/top5" in done.stdout
    assert (reference / "metrics.jsonl").read_bytes() == before
    told = train_here(reference, "--eval=retrieval")
    assert "retrieval" in told and "zero_shot" in told


def test_help_and_unknown_verbs(clipjax):
    assert "train" in clipjax("--help").stdout
    told = clipjax("train", "--help").stdout
    assert "--workdir" in told and "--eval" in told
    done = clipjax("trian", check=2)
    assert "trian" in done.stderr


@pytest.mark.parametrize(
    "flags", [("eval", "--max_bad=-1"), ("eval", "--batch_size=0"), ("classify", "--top=0")]
)
def test_counts_that_are_none_are_refused_with_their_flag(command, flags):
    done = command(*flags, "--checkpoint=none")
    assert done.code == 1
    flag, _, value = flags[1].partition("=")
    assert f"{flag}={value}" in done.err and "Traceback" not in done.err


@pytest.mark.slow
def test_a_thread_that_a_library_left_holds_up_no_failed_command(clipjax, tmp_path):
    """As Orbax's do where a save fails before its folder is made."""
    code = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    path = f"{tmp_path}{os.pathsep}{clipjax.env['PYTHONPATH']}"
    done = clipjax("eval", env={"PYTHONPATH": path}, check=1, timeout=120)
    assert "--checkpoint is missing" in done.stderr
