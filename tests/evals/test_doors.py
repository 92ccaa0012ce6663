"""Evaluations through the command, of data as it lies in files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def test_groups_are_the_same_of_a_table_a_folder_and_parquet(
    command, cache, tiny_checkpoint, save_picture, tmp_path
):
    rows = []
    for number in range(12):
        name, region = ("cat", "dog")[number % 2], ("Asia", "Africa", "Europe")[number % 3]
        path = tmp_path / "set" / name / region / f"{number}.png"
        save_picture(path, number)
        rows.append({"image": str(path.relative_to(tmp_path)), "class": name, "region": region})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    how = "?label_field=class&group_field=region"
    specs = [f"jsonl:{tmp_path}/t.jsonl{how}", f"parquet:{tmp_path}/t.parquet{how}"]
    specs.append(f"folder:{tmp_path}/set?group_field=region")
    flags = [f"--zero_shot={spec}" for spec in specs]
    found = tmp_path / "found.json"
    done = command("eval", f"--checkpoint={tiny_checkpoint}", *flags, f"--json={found}")
    assert done.code == 0, done.err
    entries = list(json.loads(found.read_text())["evaluations"].values())
    assert len(entries) == 3 and entries[0]["metrics"]["num_examples"] == 12
    groups = entries[0]["tables"]["groups"]["region"]
    assert {name: group["examples"] for name, group in groups.items()} == dict.fromkeys(
        ("Africa", "Asia", "Europe"), 4
    )
    for entry in entries[1:]:
        # A folder has another order, in which sums of floats differ.
        assert entry["metrics"] == pytest.approx(entries[0]["metrics"], abs=1e-6)
        for table in ("groups", "per_class", "confusion"):
            assert entry["tables"][table] == entries[0]["tables"][table]


def test_prompts_of_each_class_and_classes_that_are_several_names(
    command, cache, tiny_checkpoint, save_picture, tmp_path
):
    for number in range(6):
        save_picture(
            tmp_path / "set" / ("alarm_clock", "wok", "hat")[number % 3] / f"{number}.png", number
        )
    files = {
        "names.json": ["analog clock", "digital clock", "wok", "hat"],
        "map.json": {"alarm clock": ["analog clock", "digital clock"], "wok": ["wok"]},
        "cupl.json": {
            "analog clock": ["A round face with two hands.", "a photo of a {}"],
            "digital clock": ["Red digits."],
            "wok": ["A wide pan."],
            "hat": ["It is worn on the head."],
        },
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    flags = [
        f"--zero_shot=folder:{tmp_path}/set",
        f"--class_names={tmp_path}/names.json",
        f"--eval_field=zero_shot.class_map={tmp_path}/map.json",
        f"--json={tmp_path}/found.json",
    ]
    prompts = f"--templates={tmp_path}/cupl.json"
    done = command("eval", f"--checkpoint={tiny_checkpoint}", *flags, prompts)
    assert done.code == 0, done.err
    (entry,) = json.loads((tmp_path / "found.json").read_text())["evaluations"].values()
    assert (entry["metrics"]["num_examples"], entry["metrics"]["num_classes"]) == (4, 4)
    assert entry["left_out"] == {"of a class that class_map does not have": 2}
    assert "cupl.json" in entry["templates"]["from"]
    del files["cupl.json"]["hat"]
    (tmp_path / "cupl.json").write_text(json.dumps(files["cupl.json"]))
    done = command("eval", f"--checkpoint={tiny_checkpoint}", *flags, prompts)
    assert done.code == 1 and "'hat'" in done.err and "Traceback" not in done.err
