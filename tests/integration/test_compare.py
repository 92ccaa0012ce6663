"""`clipjax compare`: two checkpoints on the same pictures."""

import json

import numpy as np
import pytest
from library_folder import SPEC, weights

from clipjax.compare import paired_bootstrap
from clipjax.interop.formats import FORMATS


@pytest.mark.slow
def test_a_checkpoint_differs_from_another_and_not_from_itself(command, tmp_path):
    for seed in range(2):
        FORMATS["hf"].write(tmp_path / f"{seed}", weights(SPEC, seed))
    found = {}
    for other in range(2):
        table, page = tmp_path / f"{other}.json", tmp_path / f"{other}.html"
        flags = ("--zero_shot=synthetic:32", "--batch_size=16", "--templates=plain")
        paths = (tmp_path / "0", tmp_path / f"{other}")
        done = command("compare", *paths, *flags, f"--json={table}", f"--page={page}")
        assert done.code == 0, done.err
        assert "paired bootstrap, 95 %, n = 32, 10,000 resamples, seed 0" in done.out
        found[other] = json.loads(table.read_text())
        text = page.read_text()
        assert "Two checkpoints" in text and found[other]["per_class"][0]["name"] in text
    same, different = found[0]["difference"], found[1]["difference"]
    assert same["difference"] == same["low"] == same["high"] == same["only_a"] == 0
    accuracies = [c["metrics"]["top1"] for c in found[1]["checkpoints"]]
    assert [different["a"], different["b"]] == pytest.approx(accuracies)
    classes = found[1]["per_class"]
    for name in ("a", "b"):
        assert sum(one[name] for one in classes) == round(32 * different[name])
    assert sum(one["examples"] for one in classes) == 32
    done = command("compare", tmp_path / "0", "--zero_shot=synthetic:32")
    assert done.code == 1 and "give two, A and B" in done.err


@pytest.mark.slow
def test_two_processes_compare_as_one(clipjax, command, tmp_path):
    for seed in range(2):
        FORMATS["hf"].write(tmp_path / f"{seed}", weights(SPEC, seed))
    flags = ("--zero_shot=synthetic:33", "--batch_size=16", "--templates=plain")
    found = {}
    for name, run in (("two", clipjax.two), ("one", command)):
        table, page = tmp_path / f"{name}.json", tmp_path / f"{name}.html"
        done = run(
            *("compare", tmp_path / "0", tmp_path / "1", *flags),
            *(f"--json={table}", f"--page={page}"),
        )
        assert page.exists()
        found[name] = json.loads(table.read_text())
        if name == "two":  # the lead alone speaks, of all pictures
            assert done.stdout.count("paired bootstrap, 95 %, n = 33") == 1, done.stdout
    two, one = found["two"], found["one"]
    assert (two["difference"], two["per_class"]) == (one["difference"], one["per_class"])
    for a, b in zip(two["checkpoints"], one["checkpoints"], strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-5)
        assert a["metrics"]["num_examples"] == 33


def test_the_bootstrap_is_that_of_drawing_examples():
    random = np.random.default_rng(0)
    a, b = random.random(400) < 0.5, random.random(400) < 0.6
    found = paired_bootstrap(a, b, num_resamples=20_000, seed=1)
    pairs = b.astype(float) - a
    drawn = [pairs[random.integers(0, 400, 400)].mean() for _ in range(4000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found["difference"] == pytest.approx(pairs.mean())
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.006)
    assert found == paired_bootstrap(a, b, num_resamples=20_000, seed=1)
    assert found["only_b"] - found["only_a"] == round(400 * found["difference"])
