"""Errors at the worst moment: what was computed stays, and the message says what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
from config_files import shipped
from PIL import Image

from clipjax.processes import exit_record


def write_pictures(folder, *, broken):
    for label, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (folder / label).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((40, 40, 3), colour, np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    if broken:
        (folder / "red" / "0.png").write_bytes(b"this is no picture")


def test_an_evaluation_that_fails_at_the_end_loses_no_step(clipjax, tmp_path):
    write_pictures(tmp_path / "pictures", broken=True)
    run = tmp_path / "run"
    # As many steps as the reference: the step is compiled once for both.
    flag = f"--config.evals.zero_shot.source=folder:{tmp_path / 'pictures'}"
    done = clipjax.train(run, flag, check=1)
    assert "0.png" in done.stderr and "Traceback" not in done.stderr
    assert (run / "checkpoints" / "24" / "manifest.json").exists()


def test_training_pictures_that_do_not_decode_stop_the_run_by_name(clipjax, tmp_path):
    write_pictures(tmp_path / "pictures", broken=True)
    done = clipjax.train(
        tmp_path / "run",
        f"--config.data.source=folder:{tmp_path / 'pictures'}",
        "--config.batch_size=8",
        "--config.data.max_bad_fraction=0.0",
        check=1,
    )
    assert "0.png" in done.stderr and "max_bad_fraction" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_workdir_that_is_a_file(train_here, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in train_here(tmp_path / "file")


def test_fewer_steps_than_done_is_an_error(train_here, reference):
    flags = ("--config.total_steps=16", "--config.allow_config_change=true")
    told = train_here(reference, *flags)
    assert "step 24" in told and "total_steps" in told


def test_eval_with_the_config_of_another_model_is_refused(train_here, reference):
    flags = ("--eval=zero_shot", "--config.model.image.activation=gelu_tanh")
    told = train_here(reference, *flags)
    assert "model.image.activation" in told and "gelu_tanh" in told


def test_the_shipped_quickstart_runs(clipjax, tmp_path):
    """Two steps of the real config on the real drawings, through the real entry point.

    A block a tower, in place of four and two, and few drawings of the second artist; the whole is
    run with the documents' commands.
    """
    flags = ("--config", "configs/quickstart.py:steps=2", "--workdir", tmp_path)
    flags = ("train", *flags, "--config.batch_size=8", "--config.log_every=1")
    flags = (*flags, "--config.model.image.depth=1", "--config.model.text.depth=1")
    mix = shipped("quickstart").data.source
    few = mix.replace("twemoji:train?", "twemoji:train?limit=64&")
    assert few != mix
    done = clipjax(*flags, f"--config.data.source={few}")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == 2
    assert results["zero_shot/openmoji_unseen/num_examples"] == 392
    assert "report.html" in done.stdout


def test_a_finished_run_goes_on_without_damaged_files(clipjax, reference, tmp_path):
    """Results are found again; a file of metrics that cannot be read is named and left alone."""
    workdir = Path(shutil.copytree(reference, tmp_path / "run"))
    results = json.loads((workdir / "results.json").read_text())
    (workdir / "results.json").write_bytes(b"\xff{")
    damaged = b"\xff\n" + (workdir / "metrics.jsonl").read_bytes()
    (workdir / "metrics.jsonl").write_bytes(damaged)
    done = clipjax.train(workdir)
    assert "results.json does not hold results" in done.stderr
    assert "metrics.jsonl, line 1 is no JSON object" in done.stderr
    assert json.loads((workdir / "results.json").read_text()) == results
    assert (workdir / "results.json.damaged").read_bytes() == b"\xff{"
    assert (workdir / "metrics.jsonl").read_bytes() == damaged
    record = exit_record.read(workdir)
    assert (record["state"], record["code"], record["step"]) == ("ended", 0, results["step"])
