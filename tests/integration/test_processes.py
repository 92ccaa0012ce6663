"""Two processes joined by launch/local.sh train and evaluate as one process does."""

import dataclasses
import functools
import json
import os
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import saved_arrays

from clipjax.checkpoint import DamagedCheckpointError, read_manifest
from clipjax.checkpoint.restore import verify_state
from clipjax.goodput import CAUSES, STEPS


@pytest.fixture
def two(clipjax):
    """The command in two processes."""
    command = f"{sys.executable} {Path(__file__).parent / 'noted_collectives.py'}"
    environment = {"CLIPJAX_COMMAND": command, "PATH": os.environ["PATH"]}
    return functools.partial(clipjax, "2", command=["bash", "launch/local.sh"], env=environment)


def scores_of(workdir):
    results = json.loads((workdir / "results.json").read_text())
    return {name: value for name, value in results.items() if "/" in name}


def test_two_processes_get_the_losses_of_one(two, reference, losses_of, tmp_path):
    done = two("--config", "configs/smoke.py", "--workdir", tmp_path)
    check_told_once(tmp_path, done.stderr)
    scores = scores_of(reference)
    assert "zero_shot/synthetic_128/top1" in scores
    assert scores_of(tmp_path) == pytest.approx(scores, abs=2 / 128)  # of so many pictures
    # What the hosts tell one another while they log does not go through the devices.
    callers = set(re.findall(r"^collective: (\w+)$", done.stderr, re.M))
    assert "__init__" in callers and not {"agree", "gather", "flush"} & callers
    one, two = losses_of(reference), losses_of(tmp_path)
    assert one.keys() == two.keys()
    np.testing.assert_allclose([two[s] for s in one], list(one.values()), rtol=2e-5)
    check_blocks(tmp_path / "checkpoints" / str(max(two)))


def check_told_once(workdir, said):
    """Whoever watches sees one run: one file of a kind, one line, and where its time went."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    seconds = {cause: last[f"time_s/{cause}"] for cause in (STEPS, *CAUSES)}
    assert last["goodput"] == pytest.approx(seconds[STEPS] / sum(seconds.values()))
    assert seconds["compile"] > 0 and seconds["start"] > 0 == seconds["restart"]
    assert len([*workdir.rglob("events.out.tfevents*")]) == 1
    assert {path.name for path in workdir.rglob("*.jsonl")} == {"evals.jsonl", "metrics.jsonl"}
    (line,) = re.findall(rf"step {last['step']}/{last['step']}  .*", said)
    assert line.endswith(f"loss {last['loss']:.4g}, goodput {last['goodput']:.4g}")
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert re.search(r"compile \d+\.\d%.* of \d+\.\d\d h in 1 start\b", report)


def check_blocks(step_dir):
    """What lay in two processes was hashed in blocks; one process compares with those."""
    manifest = read_manifest(step_dir)
    assert all(leaf.digests() for leaf in manifest.leaves)
    in_blocks = [leaf for leaf in manifest.leaves if leaf.blocks]
    assert in_blocks and {len(leaf.blocks) for leaf in in_blocks} == {2}
    state = {name: jnp.asarray(value) for name, value in saved_arrays(step_dir).items()}
    verify_state(manifest, state)
    for leaf in in_blocks:
        wrong = dataclasses.replace(leaf, blocks=("0" * 64, *leaf.blocks[1:]))
        others = (x for x in manifest.leaves if x.name != leaf.name)
        with pytest.raises(DamagedCheckpointError, match=leaf.name):
            verify_state(dataclasses.replace(manifest, leaves=(*others, wrong)), state)


@pytest.mark.slow  # at its end, the run above evaluates in two processes
def test_two_processes_evaluate_a_checkpoint_as_one(two, reference, evaluated, tmp_path):
    flags, one = evaluated
    two("eval", "--checkpoint", reference, *flags, f"--json={tmp_path / 'two.json'}")
    assert json.loads((tmp_path / "two.json").read_text()) == one


@pytest.mark.slow
def test_two_processes_evaluate_a_run_as_one(two, reference):
    one = json.loads((reference / "results.json").read_text())
    (reference / "results.json").unlink()
    two("train", "--config", "configs/smoke.py", "--workdir", reference, "--eval=zero_shot")
    assert json.loads((reference / "results.json").read_text()) == one


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(clipjax, two, reference, losses_of, tmp_path):
    arguments = f"checkpoint={reference},source=synthetic:256,batch_size=16,steps=4"
    flags = (f"--config=configs/finetune.py:{arguments}", "--config.log_every=1")
    clipjax("train", *flags, "--workdir", tmp_path / "one")
    two("train", *flags, "--workdir", tmp_path / "two")
    one, both = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert one.keys() == both.keys()
    np.testing.assert_allclose([both[s] for s in one], list(one.values()), rtol=2e-5)


@pytest.mark.slow
def test_a_stopped_process_stops_both_at_one_step(clipjax, losses_of, tmp_path):
    """SIGTERM comes to one process; both save the same step and exit with the code for it."""
    script = (
        'if [ "$CLIPJAX_PROCESS_ID" = 1 ]; then export CLIPJAX_FAULT=term@loop.step:step=5; fi; '
        f'exec {sys.executable} -m clipjax "$@"'
    )
    starter = tmp_path / "start.sh"
    starter.write_text(script)
    workdir = tmp_path / "run"
    clipjax(
        "2",
        "--config",
        "configs/smoke.py:steps=400",
        "--workdir",
        workdir,
        "--config.checkpoint.every_steps=100",
        command=["bash", "launch/local.sh"],
        env={"CLIPJAX_COMMAND": f"bash {starter}"},
        check=80,
    )
    (saved,) = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()]
    assert 5 <= saved < 400
    assert max(losses_of(workdir)) == saved


def test_no_number_of_processes_is_a_usage_error(clipjax):
    done = clipjax("--config", "x", command=["bash", "launch/local.sh"], check=2)
    assert "usage" in done.stderr
