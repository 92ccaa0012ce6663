"""Skipped steps: when they are too many, what is written of them, which checkpoint they leave."""

import json

import jax.numpy as jnp
import pytest

from clipjax.checkpoint import folders
from clipjax.skipped_steps import SkippedSteps


def make(path, **changes):
    limits = {"in_a_row": 3, "fraction": 0.2, "total_steps": 30, **changes}
    return SkippedSteps(path, examples=lambda step: [step, step + 100], **limits)


def first_stop(skipped, verdicts):
    for step, verdict in enumerate(verdicts, 1):
        if wrong := skipped.give(step, jnp.float32(verdict)):
            return step, wrong
    return None, skipped.read()


def test_too_many_in_a_row_are_said_one_step_late_and_written(tmp_path):
    path = tmp_path / "skipped.jsonl"
    step, wrong = first_stop(make(path), [0, 1, 2, 0, 1, 2, 3, 4, 5])
    assert step == 8 and wrong.startswith("3 steps in a row, up to step 7")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 5, 6, 7]
    assert lines[0] == {"step": 2, "in_a_row": 1, "examples": [2, 102]}


@pytest.mark.parametrize(("fraction", "stops"), [(0.2, 14), (0.5, None)])
def test_a_run_that_limps_ends(fraction, stops):
    verdicts = [i % 2 for i in range(1, 31)] + [0]
    step, wrong = first_stop(make(None, fraction=fraction), verdicts)
    assert step == stops and bool(wrong) is (stops is not None)


def test_retention_keeps_the_newest_steps_before_the_skipped_ones(tmp_path):
    """The state of step 4 may be the bad one: from step 2 the run went on."""
    for step, skipped in ((1, 0), (2, 0), (4, 0), (6, 1), (8, 3), (10, 5)):
        (tmp_path / str(step)).mkdir()
        fields = {"skipped_in_a_row": skipped} if skipped else {}
        (tmp_path / str(step) / "manifest.json").write_text(json.dumps(fields))
    folders.delete_old_steps(tmp_path, keep=2, keep_every=None)
    assert folders.committed_steps(tmp_path) == [2, 4, 8, 10]
    assert folders.good_steps(tmp_path) == [4, 2]
    folders.delete_old_steps(tmp_path, keep=1, keep_every=None)
    assert folders.committed_steps(tmp_path) == [4, 10]
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="no such step, only 4, 8, 10"):
        folders.set_later_aside(tmp_path, 6)
    assert folders.set_later_aside(tmp_path, 4)
    (tmp_path / "6").mkdir()  # the run went on, and is started again by the same command
    assert not folders.set_later_aside(tmp_path, 4)
    kept = ["10.after_4", "4", "6", "8.after_4", "resumed.after_4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == kept
