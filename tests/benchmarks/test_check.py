"""benchmarks/check.py: what moved beyond the noise, and the exit code that says so."""

import json
import subprocess
import sys

import pytest

from benchmarks import check
from benchmarks.common import ROOT


def row(case, ratio, noise=0.05, **changes):
    values = {"wall_ratio": ratio, "wall_noise": noise, "cpu_ratio": ratio, "cpu_noise": noise}
    return {"case": case, "peer": "open_clip eager", "status": "ok", **values, **changes}


def write(folder, date, rows, name="cpu", cpu="a CPU", cases=None):
    document = {
        "name": name,
        "date": date,
        "commit": "abc",
        "machine": {"cpu": cpu},
        "rows": rows,
        "cases": cases,
    }
    (folder / f"{name}_{date}.json").write_text(json.dumps(document))


def run(folder, *arguments):
    command = [sys.executable, "benchmarks/check.py", "--folder", str(folder), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_exit_code_tells_what_got_worse(tmp_path):
    write(tmp_path, "2026-01-01", [row("step", 1.20), row("embed", 1.80), row("gone", 2.0)])
    write(tmp_path, "2026-01-02", [row("step", 1.12), row("embed", 1.95), row("new", 9.0)])
    write(tmp_path, "2026-01-03", [row("step", 0.1)], name="another")
    done = run(tmp_path, tmp_path / "cpu_2026-01-02.json")
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()[1:-1]
    assert [line.split(",")[0].split() for line in lines[::2]] == [
        ["step"],
        ["better", "embed"],
        ["MISSING", "gone"],
    ]
    assert done.stdout.splitlines()[-1] == "2 of 6 ratios got worse beyond the noise"
    (tmp_path / "cpu_2026-01-01.json").unlink()
    assert run(tmp_path, tmp_path / "cpu_2026-01-02.json").returncode == 2


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(1.2, 1.11, ""), (1.2, 1.09, "worse"), (1.2, 1.29, ""), (1.2, 1.31, "better")],
)
def test_a_ratio_moved_if_it_left_the_noise_of_both(before, after, verdict):
    old, new = ({"rows": [row("step", ratio)]} for ratio in (before, after))
    move = check.moves(old, new)[0]
    assert move.noise == pytest.approx(0.1)
    assert (move.is_worse, move.is_better) == (verdict == "worse", verdict == "better")


def test_a_case_that_was_not_measured_is_missing_and_not_equal():
    old = {"rows": [row("step", 1.2)]}
    new = {"rows": [row("step", 1.2, status="failed")]}
    assert all(move.is_worse and move.after is None for move in check.moves(old, new))
    assert check.moves(new, old) == []  # what the older record has not cannot have moved


def test_records_are_compared_with_the_newest_before_them(tmp_path):
    for day, ratio in (("01", 1.0), ("02", 2.0), ("03", 3.0)):
        write(tmp_path, f"2026-01-{day}", [row("step", ratio)])
    (tmp_path / "other.json").write_text("[1, 2]")  # no record: it is passed over
    (tmp_path / "broken.json").write_text("{")
    new, old = check.choose(None, None, tmp_path)
    assert (new["date"], old["date"]) == ("2026-01-03", "2026-01-02")
    new, old = check.choose(tmp_path / "cpu_2026-01-02.json", None, tmp_path)
    assert (new["date"], old["date"]) == ("2026-01-02", "2026-01-01")
    with pytest.raises(ValueError, match="no record"):
        check.choose(tmp_path / "other.json", None, tmp_path)
    with pytest.raises(ValueError, match="before 2026-01-01"):
        check.choose(tmp_path / "cpu_2026-01-01.json", None, tmp_path)


def test_records_of_the_same_cases_are_preferred(tmp_path):
    rows = [row("step", 1.2), row("launch: import", 1.5)]
    write(tmp_path, "2026-01-01", rows)
    write(tmp_path, "2026-01-02", rows[1:], cases=["launch"])
    done = run(tmp_path)  # no two of the same cases: what was not to be measured is not missing
    assert done.returncode == 0 and done.stdout.count("not run") == 2
    write(tmp_path, "2026-01-03", [row("step", 0.9)])
    new, old = check.choose(None, None, tmp_path)
    assert (new["date"], old["date"]) == ("2026-01-03", "2026-01-01")
    done = run(tmp_path)
    assert done.returncode == 1 and done.stdout.count("MISSING") == 2
    write(tmp_path, "2026-01-04", [row("launch: import", 1.5, status="failed")], cases=["launch"])
    new, old = check.choose(None, None, tmp_path)
    assert (new["date"], old["date"]) == ("2026-01-04", "2026-01-02")
    assert all(move.is_worse for move in check.moves(old, new))  # it was to have it


def test_another_cpu_is_named(tmp_path):
    write(tmp_path, "2026-01-01", [row("step", 1.2)], cpu="one")
    write(tmp_path, "2026-01-02", [row("step", 1.2)], cpu="two")
    done = run(tmp_path)
    assert done.returncode == 0 and "another CPU: one before, two now" in done.stdout
