"""`clipjax soup`: mixtures of checkpoints, by the command, read back as any checkpoint is."""

import json

import numpy as np
import pytest
from library_folder import SPEC, weights

from clipjax import load
from clipjax.checkpoint import choose_step, load_params
from clipjax.interop.formats import FORMATS
from clipjax.models.layers_layout import unstack_layers
from clipjax.trees import flatten_with_names


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory):
    """Three checkpoints of one model, the third in another package's format."""
    folder = tmp_path_factory.mktemp("ingredients")
    # A fine-tune leaves out no patches where its pre-training did.
    dropping = {**SPEC, "image": {**SPEC["image"], "patch_dropout": 0.25}}
    for seed, spec in enumerate((SPEC, dropping, SPEC)):
        FORMATS["clipjax" if seed < 2 else "hf"].write(folder / f"{seed}", weights(spec, seed))
    return [folder / f"{seed}" for seed in range(3)]


def leaves_of(path):
    params = unstack_layers(load_params(choose_step(path).step_dir))
    return {name: np.asarray(leaf) for name, leaf in flatten_with_names(params)}


def mixed(*shares):
    drawn = [weights(SPEC, seed).leaves for seed in range(len(shares))]
    return {
        name: sum(s * d[name].read().astype(np.float64) for s, d in zip(shares, drawn, strict=True))
        for name in drawn[0]
    }


def test_the_mean_of_checkpoints_is_a_checkpoint(command, ingredients, tmp_path):
    done = command("soup", *ingredients, f"--to={tmp_path / 'mean'}", f"--json={tmp_path / 'x'}")
    assert done.code == 0, done.err
    found, wanted = leaves_of(tmp_path / "mean"), mixed(1 / 3, 1 / 3, 1 / 3)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6, atol=1e-8, err_msg=name)
    told = json.loads((tmp_path / "x").read_text())
    assert told["shares"] == {str(path): 1 / 3 for path in ingredients}
    manifest = json.loads((choose_step(tmp_path / "mean").step_dir / "manifest.json").read_text())
    origin = manifest["config"]["converted_from"]
    assert origin.startswith("mixture: 0.333333 x clipjax: manifest.json (SHA-256 ")
    assert load(tmp_path / "mean").spec["name"] == SPEC["name"]


@pytest.mark.slow
def test_a_point_between_two(command, ingredients, tmp_path):
    first, second, _ = ingredients
    flags = ("--method=between", "--alpha=0.25", f"--to={tmp_path / 'point'}")
    done = command("soup", first, second, *flags)
    assert done.code == 0, done.err
    found = leaves_of(tmp_path / "point")
    for name, leaf in mixed(0.75, 0.25).items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6, atol=1e-8, err_msg=name)
    done = command("soup", first, second, "--method=between", "--alpha=0", f"--to={tmp_path / '0'}")
    assert done.code == 0, done.err
    for name, leaf in leaves_of(first).items():
        np.testing.assert_array_equal(leaf, leaves_of(tmp_path / "0")[name])


@pytest.mark.parametrize(
    ("paths", "flags", "words"),
    [
        ((0,), (), "1 checkpoints are given; --method uniform mixes two or more"),
        ((0, 0), (), "is given twice"),
        ((0, 1, 2), ("--method=between",), "3 checkpoints are given; --method between mixes two"),
        ((0, 1), ("--method=greedy",), "chooses by an evaluation: give --zero_shot SPEC"),
        ((0, 1), ("--method=between",), "data that you do not report on, or --alpha"),
        ((0, 1), ("--alpha=0.5",), "it is of --method between"),
        ((0, 1), ("--method=between", "--alpha=1.5"), "alpha = 1.5: it is from 0"),
        ((0, 1), ("--alphas=0,half",), "--alphas 0,half: could not convert"),
        ((0, 1), ("--keep=x/top1=0.8",), "--keep is for the choice of a point"),
        ((0, 1), ("--keep=x/top1",), "--keep 'x/top1': expected METRIC=SHARE"),
    ],
)
def test_what_cannot_be_mixed_is_said(command, ingredients, tmp_path, paths, flags, words):
    given = [ingredients[number] for number in paths]
    done = command("soup", *given, *flags, f"--to={tmp_path / 'no'}")
    assert done.code == 1 and words in done.err, done.err
    assert "Traceback" not in done.err and not (tmp_path / "no").exists()


def test_another_model_is_refused(command, ingredients, tmp_path):
    other = {**SPEC, "text": {**SPEC["text"], "activation": "gelu"}}
    FORMATS["clipjax"].write(tmp_path / "other", weights(other))
    done = command("soup", ingredients[0], tmp_path / "other", f"--to={tmp_path / 'no'}")
    assert done.code == 1 and "text.activation is gelu there and quick_gelu here" in done.err


@pytest.mark.slow
def test_what_is_chosen_is_the_best_by_the_evaluation(command, ingredients, tmp_path):
    metric = "zero_shot/synthetic_48/ece"  # models that are drawn differ in no top-1
    evals = ("--zero_shot=synthetic:48", "--templates=plain", "--batch_size=16")

    def value_of(path):
        table = tmp_path / "value.json"
        done = command("eval", f"--checkpoint={path}", *evals, f"--json={table}")
        assert done.code == 0, done.err
        return json.loads(table.read_text())[metric]

    curve = tmp_path / "curve.json"
    flags = ("--method=between", "--alphas=0,0.3,0.7,1", f"--metric={metric}", f"--json={curve}")
    done = command("soup", *ingredients[:2], *flags, *evals, f"--to={tmp_path / 'line'}")
    assert done.code == 0, done.err
    told = json.loads(curve.read_text())
    assert [entry["alpha"] for entry in told["tried"]] == [0, 0.3, 0.7, 1]
    values = [entry["metrics"][metric] for entry in told["tried"]]
    assert told["metrics"][metric] == max(values) == value_of(tmp_path / "line")
    assert values[0] == value_of(ingredients[0]) and values[-1] == value_of(ingredients[1])
    assert len(set(values)) > 1, "or nothing was chosen"

    # Of the points that keep enough of another metric the best; the first keeps all of it.
    other, page = "zero_shot/synthetic_48/macro_f1", tmp_path / "curve.html"
    of_first = [entry["metrics"][other] for entry in told["tried"]]
    flags = ("--method=between", "--alphas=0.3,0.7,1", f"--metric={metric}", f"--json={curve}")
    flags += (f"--keep={other}=0.99", f"--page={page}", f"--to={tmp_path / 'kept'}")
    done = command("soup", *ingredients[:2], *flags, *evals)
    assert done.code == 0, done.err
    kept = [v for v, o in zip(values, of_first, strict=True) if o >= 0.99 * of_first[0]]
    told = json.loads(curve.read_text())
    assert told["metrics"][metric] == max(kept) and told["keep"] == {other: 0.99}
    assert page.read_text(encoding="utf-8").count(">written<") == 1

    flags = ("--method=greedy", f"--metric={metric}", f"--json={curve}")
    done = command("soup", *ingredients, *flags, *evals, f"--to={tmp_path / 'soup'}")
    assert done.code == 0, done.err
    told = json.loads(curve.read_text())
    alone = {str(path): value_of(path) for path in ingredients}
    taken = [path for path, share in told["shares"].items() if share]
    assert told["metrics"][metric] == value_of(tmp_path / "soup") >= max(alone.values())
    assert max(alone, key=lambda path: alone[path]) in taken
    done = command("soup", *ingredients[:2], *evals, "--metric=x/y/z", f"--to={tmp_path / 'no'}")
    assert done.code == 1 and "--metric x/y/z" in done.err and f" {metric}," in done.err, done.err
