"""Averages of a run, by the command: evaluated beside the model, saved, resumed, taken out."""

import json

import numpy as np
import pytest

from clipjax import load
from clipjax.checkpoint import choose_step, load_params
from clipjax.trees import flatten_with_names


@pytest.mark.slow
def test_averages_are_evaluated_saved_resumed_and_taken_out(clipjax, digests_of, tmp_path):
    averages = "({'name':'fast','decay':0.05},{'name':'slow','half_life':'320 examples'})"
    flags = (
        f"--config.optimizer.averages={averages}",
        "--config.optimizer.freeze=('^image_encoder/',)",
        "--config.checkpoint.every_steps=2",
        "--config.report=false",
    )
    run = ("train", "--config", "configs/smoke.py:steps=4", "--workdir", tmp_path / "run", *flags)
    clipjax(*run)
    (line,) = (tmp_path / "run" / "evals.jsonl").read_text().splitlines()
    found = json.loads(line)
    kinds = {name.rsplit("/", 1)[0] for name in found if name.endswith("/top1")}
    assert kinds == {
        f"zero_shot/synthetic_128{end}" for end in ("", "_average_fast", "_average_slow")
    }
    digests = digests_of(tmp_path / "run", 4)
    of_averages = [name for name in digests if name.startswith("averages/")]
    assert of_averages and not any("/image_encoder/" in name for name in of_averages)
    clipjax(*run, "--resume_step=2")
    assert digests_of(tmp_path / "run", 4) == digests

    step = choose_step(tmp_path / "run").step_dir
    trees = {which: dict(flatten_with_names(load_params(step, which=which))) for which in
             ("params", "fast", "slow")}  # fmt: skip
    name = "text_encoder/token_embedding"
    distance = {w: float(np.abs(trees[w][name] - trees["params"][name]).max()) for w in trees}
    assert 0 == distance["params"] < distance["fast"] < distance["slow"]
    image = "image_encoder/position_embedding"
    np.testing.assert_array_equal(trees["slow"][image], trees["params"][image])

    clipjax("convert", "--from", tmp_path / "run", "--which=slow", "--to", tmp_path / "slow")
    one, other = load(tmp_path / "slow"), load(tmp_path / "run", which="slow")
    both = (flatten_with_names(model.variables) for model in (one, other))
    for (key, a), (_, b) in zip(*both, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=key)
    table = tmp_path / "table.json"
    clipjax("eval", "--checkpoint", tmp_path / "run", "--which=slow", "--zero_shot=synthetic:128",
            f"--json={table}")  # fmt: skip
    told = json.loads(table.read_text())
    assert told["parameters"] == "slow"
    metric = "zero_shot/synthetic_128/top1"
    assert told[metric] == found["zero_shot/synthetic_128_average_slow/top1"]
    done = clipjax("eval", "--checkpoint", tmp_path / "run", "--which=quick",
                   "--zero_shot=synthetic:128", check=1)  # fmt: skip
    assert "--which quick: the checkpoint holds params, fast, slow" in done.stderr
