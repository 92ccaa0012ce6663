"""The recipes of several stages, small, by the command."""

import json

import pytest

STAGES = {
    "clipa_vit_h14": [0, 0, 0, 0, 1, 1, 2, 2],
    "openvision_vit_l14": [0, 0, 0, 0, 1, 1, 2, 2],
    "flip_vit_b16": [0, 0, 0, 1, 1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_recipe_of_stages_trains(name, tmp_path, command):
    flags = [f"--config=configs/{name}.py:smoke", "--config.log_every=1", f"--workdir={tmp_path}"]
    code, _, errors = command("train", *flags, "--config.report=false")
    assert code == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == STAGES[name]
    first = STAGES[name].index(1)
    assert rows[first - 1]["learning_rate"] > 0
    assert all(row["skipped"] == 0 and row["loss"] > 0 for row in rows)
