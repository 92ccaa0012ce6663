"""A run that is killed and started again ends as if nothing had happened, to the bit."""

import json
import random
import re
import shutil

import pytest
from golden import golden

STEPS = 24


def test_the_curve_of_the_smoke_run_is_the_kept_one(reference, losses_of):
    """To 1e-5: vector units, optimisation and JAX 0.10 or 0.12 differ by less than 1e-6."""
    losses = losses_of(reference)
    kept, found = golden("smoke_losses.json", [losses[step] for step in sorted(losses)])
    assert len(kept) == STEPS
    assert found == pytest.approx(kept, rel=0, abs=1e-5)


@pytest.mark.slow
def test_killed_at_random_steps(clipjax, reference, losses_of, digests_of, tmp_path):
    steps = sorted(random.Random(20).sample(range(1, STEPS), 5))
    for step in steps:
        done = clipjax.train(
            tmp_path, check=None, env={"CLIPJAX_FAULT": f"kill@loop.step:step={step}"}
        )
        assert done.returncode == -9, done.stderr[-2000:]
    clipjax.train(tmp_path)
    assert losses_of(tmp_path) == losses_of(reference)
    assert set(losses_of(reference)) == set(range(1, STEPS + 1))
    assert digests_of(tmp_path, STEPS) == digests_of(reference, STEPS)


@pytest.mark.slow
def test_the_comparison_sees_a_lost_optimizer(clipjax, reference, losses_of, tmp_path):
    """Negative control: the parameters of step 8 with a fresh optimizer are another run."""
    other = tmp_path / "other"
    clipjax.train(
        other,
        f"--config.init.checkpoint={reference / 'checkpoints' / '8'}",
        "--config.allow_config_change=true",
    )
    assert losses_of(other)[16] != losses_of(reference)[24]


@pytest.mark.slow
def test_asked_to_stop(clipjax, reference, losses_of, digests_of, tmp_path):
    """By SIGTERM; runs that are killed without a word are above, and in tests/faults."""
    plain = (tmp_path, "--config.report=false", "--config.tensorboard=false")
    done = clipjax.train(*plain, check=80, env={"CLIPJAX_FAULT": "term@loop.step:step=11"})
    # The signal is heard beside the loop, which may be a step further.
    saved = int(re.search(r"step (\d+) is saved", done.stderr)[1])
    assert 11 <= saved < STEPS
    assert (tmp_path / "checkpoints" / str(saved) / "manifest.json").exists()
    assert max(losses_of(tmp_path)) == saved
    clipjax.train(*plain)
    assert losses_of(tmp_path) == losses_of(reference)
    assert set(losses_of(reference)) == set(range(1, STEPS + 1))
    assert digests_of(tmp_path, STEPS) == digests_of(reference, STEPS)


def test_a_finished_run_is_only_shown(command, reference):
    before = (reference / "metrics.jsonl").read_bytes()
    done = command("train", "--config=configs/smoke.py", f"--workdir={reference}")
    assert done.code == 0 and "zero_shot/synthetic_128/top1" in done.out
    assert (reference / "metrics.jsonl").read_bytes() == before
    results = json.loads((reference / "results.json").read_text())
    assert results["step"] == STEPS
    assert 0 <= results["zero_shot/synthetic_128/top1"] <= 1
    assert f"report: {reference / 'report.html'}" in done.out
    assert "data:image/png;base64" in (reference / "report.html").read_text()
    assert list((reference / "tensorboard").iterdir())


def test_another_config_in_the_same_workdir_is_refused(train_here, reference, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(reference, workdir)
    told = train_here(workdir, "--config.seed=3")
    assert "workdir of another config" in told and "seed" in told
    told = train_here(workdir, "--config.optimizer.learning_rate=0.5")
    assert "learning_rate" in told and "allow_config_change" in told
