"""`clipjax eval --suite`: what is there is evaluated once, what is not is told."""

import io
import json
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from library_folder import weights
from PIL import Image

from clipjax.evals.suite import list_suites, load_suite
from clipjax.interop.formats import FORMATS

SETS = [
    {"name": "first"},
    {"name": "vtab/second", "metric": ["top1", "mean_per_class_recall"]},
    {"name": "third", "obtain": "ask for {clean}"},
]
SUITE = {"sets": SETS, "averages": {"average": ["first", "vtab/second", "third"]}}


def write_set(root, seed):
    """A dataset of three classes as CLIP_benchmark writes them."""
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1\n")
    (root / "classnames.txt").write_text("red\nblue\ngreen\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c} picture\n")
    random = np.random.default_rng(seed)
    with tarfile.open(root / "test" / "0.tar", "w") as archive:
        for number in range(6):
            picture = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(picture, "PNG")
            label = b"%d" % random.integers(3)
            for suffix, content in (("png", picture.getvalue()), ("cls", label)):
                entry = tarfile.TarInfo(f"s{number:05d}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    FORMATS["hf"].write(folder / "hf", weights())
    write_set(folder / "data" / "wds_first", 0)
    write_set(folder / "data" / "wds_vtab-second_test", 1)
    (folder / "mine.json").write_text(json.dumps(SUITE))
    return folder


def flags(place, results, *more):
    base = ("eval", f"--checkpoint={place / 'hf'}", f"--suite={place / 'mine.json'}")
    return (*base, f"--data_root={place / 'data'}", f"--results={results}", "--batch_size=8", *more)


@pytest.mark.slow
def test_a_killed_suite_goes_on_and_counts_nothing_twice(clipjax, command, place, tmp_path):
    kept, other = tmp_path / "kept", tmp_path / "other"
    fault = {"CLIPJAX_FAULT": "kill@suite.between_sets:step=1"}
    killed = clipjax(*flags(place, kept), env=fault, check=-9)
    assert "mine, 1 of 2: first" in killed.stderr and "2 of 2" not in killed.stderr
    (first,) = kept.iterdir()
    written = first.stat().st_mtime_ns

    tables = [tmp_path / "resumed.json", tmp_path / "whole.json"]
    resumed = command(*flags(place, kept, f"--json={tables[0]}"))
    assert resumed.code == 0, resumed.err
    assert resumed.err.count("as it was evaluated before") == 1
    assert first.stat().st_mtime_ns == written and len(list(kept.iterdir())) == 2
    whole = command(*flags(place, other, f"--json={tables[1]}"))
    assert whole.err.count("as it was evaluated before") == 0
    found, wanted = (json.loads(table.read_text()) for table in tables)
    # The set of before the kill was summed over another number of devices: to the last digits.
    numbers, expected = (
        {name: value for name, value in document.items() if isinstance(value, float)}
        for document in (found, wanted)
    )
    assert numbers == pytest.approx(expected, rel=1e-5) and len(numbers) > 10
    assert found["suite"] == wanted["suite"]

    numbers = found["zero_shot/first/top1"], found["suite"]["sets"]["vtab/second"]["value"]
    parts = [found[f"zero_shot/vtab_second/{m}"] for m in ("top1", "mean_per_class_recall")]
    assert numbers[1] == pytest.approx(np.mean(parts))
    assert found["suite/mine/average_of_2_of_3"] == pytest.approx(np.mean(numbers))
    assert "suite/mine/average" not in found
    assert found["suite"]["averages"]["average"]["missing"] == ["third"]
    assert "missing: third\n  ask for third" in resumed.out
    assert "mine average: " in resumed.out and "of 2 of 3 sets" in resumed.out


def files_in(folder):
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob("*.json")}


def killed_after(clipjax, word, seconds, arguments):
    """SIGKILL so many seconds after a line of the log with a word; whether it struck."""
    command = [sys.executable, "-m", "clipjax", *map(str, arguments)]
    with subprocess.Popen(command, env=clipjax.env, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if word in line:
                time.sleep(seconds)
                process.kill()
    return process.returncode == -signal.SIGKILL


@pytest.mark.nightly
def test_a_suite_that_is_killed_at_any_moments_loses_nothing(clipjax, place, tmp_path):
    """SIGKILL at five random moments, each while another set is evaluated or written."""
    names = [f"set{n}" for n in range(6)]
    for seed, name in enumerate(names):
        write_set(tmp_path / "data" / f"wds_{name}", seed)
    suite = tmp_path / "six.json"
    suite.write_text(json.dumps({"sets": [{"name": name} for name in names]}))
    kept, tables = tmp_path / "kept", [tmp_path / name for name in ("whole.json", "resumed.json")]

    def asked(results, table):
        more = (f"--suite={suite}", f"--data_root={tmp_path / 'data'}", f"--json={table}")
        return flags(place, results, *more)

    clipjax(*asked(tmp_path / "other", tables[0]))
    written = sorted(p.stat().st_mtime for p in (tmp_path / "other").iterdir())
    gap = (written[-1] - written[0]) / (len(names) - 1)
    random, seen, struck = np.random.default_rng(), {}, 0
    for number in range(1, 6):
        moment = random.uniform(0, gap)
        struck += killed_after(clipjax, f"six, {number} of 6", moment, asked(kept, tables[1]))
        now = files_in(kept)
        assert now.items() >= seen.items()  # nothing is lost, and nothing made again
        assert len(now) >= number - 1
        seen = now
    done = clipjax(*asked(kept, tables[1]))
    assert done.stderr.count("as it was evaluated before") == len(seen)
    assert files_in(kept).items() >= seen.items() and len([*kept.iterdir()]) == len(names)
    assert struck >= 3  # one that comes late finds nothing to kill
    whole, resumed = (json.loads(table.read_text()) for table in tables)
    assert whole == resumed and len(whole["suite"]["sets"]) == len(names)


@pytest.mark.slow
def test_two_processes_evaluate_a_suite_as_one(clipjax, command, place, tmp_path):
    tables = [tmp_path / name for name in ("two.json", "one.json", "kept.json")]
    clipjax.two(*flags(place, tmp_path / "two", f"--json={tables[0]}"))
    one = command(*flags(place, tmp_path / "one", f"--json={tables[1]}"))
    kept = command(*flags(place, tmp_path / "two", f"--json={tables[2]}"))
    assert one.code == kept.code == 0, one.err + kept.err
    assert kept.err.count("as it was evaluated before") == 2
    two, wanted, again = (json.loads(table.read_text()) for table in tables)
    assert again == two
    numbers, expected = (
        {name: value for name, value in document.items() if isinstance(value, float)}
        for document in (two, wanted)
    )
    assert numbers == pytest.approx(expected, rel=1e-5)
    assert two["suite"] == wanted["suite"]
    assert [two[f"zero_shot/{name}/num_examples"] for name in ("first", "vtab_second")] == [6, 6]


def test_a_kept_result_is_of_this_checkpoint_data_and_prompts(command, place, tmp_path):
    results = tmp_path / "kept"
    assert command(*flags(place, results, "--skip=vtab/second")).code == 0
    (kept,) = results.iterdir()
    (place / "data" / "wds_first" / "zeroshot_classification_templates.txt").write_text("{c}\n")
    try:
        again = command(*flags(place, results, "--skip=vtab/second"))
    finally:
        write = (place / "data" / "wds_first" / "zeroshot_classification_templates.txt").write_text
        write("a {c} picture\n")
    assert "as it was evaluated before" not in again.err and len(list(results.iterdir())) == 2
    kept.write_text(kept.read_text().replace('"top1": 0.', '"top1": 1.')[:-3])
    damaged = command(*flags(place, results, "--skip=vtab/second"))
    assert damaged.code == 0 and f"{kept} is made anew" in damaged.err
    assert json.loads(kept.read_text())["identity"]["set"] == "first"


def test_what_cannot_be_run_is_one_clear_error(command, place, tmp_path):
    def told(*arguments, suite=None):
        if suite is not None:
            path = tmp_path / "other.json"
            path.write_text(json.dumps(suite))
            arguments = (*arguments, f"--suite={path}")
        done = command(*flags(place, tmp_path / "kept", *arguments))
        assert done.code == 1 and "Traceback" not in done.err, done.err
        return done.err

    assert "there are datacomp, " in told("--suite=datacmp")
    assert "--templates with --suite" in told("--templates=simple")
    assert "--skip nothing: the sets of mine are first" in told("--skip=nothing")
    assert "none of the 3 sets of mine is below" in told(f"--data_root={tmp_path}")
    assert "sets[0].nam" in told(suite={"sets": [{"nam": "x"}]})
    assert "averages.all" in told(suite={"sets": SETS, "averages": {"all": ["first", "fifth"]}})
    kinds = [{"name": "first", "kind": "unheard"}, {"name": "vtab/second"}]
    assert "first: there is no evaluation 'unheard'" in told(suite={"sets": kinds})
    metrics = [{"name": "first", "metric": "worst_region"}, {"name": "vtab/second"}]
    error = told(suite={"sets": metrics})
    assert "first: the metric 'worst_region' is none of those of zero_shot" in error
    assert "zero_shot/vtab_second: top1" in error  # the others are evaluated all the same
    half = tmp_path / "half"
    write_set(half / "wds_first", 0)
    write_set(half / "wds_third", 0)
    (half / "wds_first" / "test" / "nshards.txt").write_text("2\n")
    (half / "wds_third" / "test" / "nshards.txt").unlink()
    (half / "wds_third" / "test" / "0.tar").unlink()
    error = told(f"--data_root={half}")
    assert "2 sets of mine cannot be read" in error and "1.tar" in error and "third: " in error
    parts = tmp_path / "parts"
    write_set(parts / "wds_first", 0)
    write_set(parts / "wds_third", 0)
    shard = parts / "wds_first" / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    (parts / "wds_third" / "classnames.txt").unlink()
    error = told(f"--data_root={parts}")
    assert "2 sets of mine cannot be read" in error and "has no classnames.txt" in error
    assert f"1 of 1 shards are cut short, e.g. {shard}" in error


def test_the_suites_that_come_with_the_package_are_whole():
    suites = {name: load_suite(name) for name in list_suites()}
    assert set(suites) == {"datacomp", "imagenet_robustness", "retrieval"}
    datacomp = suites["datacomp"]
    assert len(datacomp.sets) == len(datacomp.averages["average"]) == 38
    counts = {name: len(members) for name, members in datacomp.averages.items()}
    assert counts == {"average": 38, "imagenet_shifts": 6, "vtab": 13, "retrieval": 3}
    for suite in suites.values():
        assert all(one.obtain and (one.folders or one.spec) for one in suite.sets)
