"""What LoRA has learned, alone in a folder: whole with its base, refused with any other."""

import json
import shutil

import jax
import numpy as np
import pytest
from checkpoints import write_checkpoint
from tiny import tiny_spec

from clipjax import load
from clipjax.checkpoint import choose_step, load_params
from clipjax.interop import Hints, WeightFileError
from clipjax.interop.converting import convert_weights
from clipjax.interop.files import open_tensors
from clipjax.interop.reading import read_weights
from clipjax.models import abstract_variables
from clipjax.models.lora import LORA, adapted_kernels, add_factors
from clipjax.partitioning.boxes import unbox
from clipjax.trees import flatten_with_names

SPEC = tiny_spec(text={"vocab_size": 49408, "depth": 1}, image={"depth": 3})
RANK, ALPHA = 2, 6.0


def noise(shapes, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(0.1 * random.standard_normal(x.shape)), shapes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, and a run of LoRA from its first step that also trained a norm."""
    folder = tmp_path_factory.mktemp("runs")
    base = noise(abstract_variables(SPEC)["params"], 0)
    write_checkpoint(folder / "base", SPEC, base, step=3)
    write_checkpoint(folder / "base", SPEC, noise(base, 1), step=7)  # the base has gone on
    shapes = {name: leaf.shape for name, leaf in flatten_with_names(base)}
    names = adapted_kernels(("image_encoder/.*/mlp/", "text_.*qkv"), shapes)
    params = unbox(add_factors({"params": base}, jax.random.key(0), RANK, names.__contains__))[
        "params"
    ]
    params = {**params, LORA: noise(params[LORA], 2)}
    fc = params[LORA]["image_encoder"]["transformer"]["blocks"]["mlp"]["fc"]["kernel"]
    fc["b"][1] = 0  # a block that was no target
    params["text_encoder"]["ln_final"] = noise(params["text_encoder"]["ln_final"], 3)
    config = {
        "lora": {"rank": RANK, "alpha": ALPHA},
        "init": {"checkpoint": str(folder / "base")},
        "evals": {"pets": {"name": "zero_shot", "templates": "plain"}},
    }
    write_checkpoint(folder / "run", SPEC, params, config=config)
    convert_weights(folder / "run", folder / "adapter", "adapter")
    return folder


def arrays_of(model):
    return {name: np.asarray(x) for name, x in flatten_with_names(model.variables)}


def test_it_holds_what_was_learned_and_no_more(runs):
    about = json.loads((runs / "adapter" / "adapter.json").read_text())
    assert about["base"]["path"] == str(runs / "base" / "checkpoints" / "3")
    names = open_tensors(runs / "adapter" / "adapter.safetensors").tensors
    whole = {name for name in names if not name.startswith("lora/")}
    assert whole == {"text_encoder/ln_final/scale", "text_encoder/ln_final/bias"}
    blocks = "lora/image_encoder/transformer/block_{}/mlp/fc/kernel/a"
    assert [blocks.format(i) in names for i in range(3)] == [True, False, True]
    assert len(names) == 2 + 2 * (2 + 3 + 1)
    sizes = [sum(x.stat().st_size for x in (runs / d).rglob("*")) for d in ("adapter", "base")]
    assert sizes[0] < sizes[1] / 20


def test_it_is_the_run_to_the_bit_and_the_run_is_no_longer_the_base(runs, tmp_path):
    convert_weights(runs / "run", tmp_path / "merged", "clipjax")
    wanted = arrays_of(load(runs / "run"))
    for found in (
        load(runs / "adapter"),
        load(runs / "base", lora=runs / "adapter"),
        load(tmp_path / "merged"),
    ):
        leaves = arrays_of(found)
        assert leaves.keys() == wanted.keys() and not any(LORA in name for name in leaves)
        for name, value in wanted.items():
            np.testing.assert_array_equal(leaves[name], value, err_msg=name)
        assert found.prompts().templates == load(runs / "run").prompts().templates
    params = dict(flatten_with_names(load_params(runs / "base" / "checkpoints" / "3")))
    different = [n for n, x in params.items() if not np.array_equal(x, wanted[f"params/{n}"])]
    assert len(different) == 2 + 3
    # An adapter is written of an adapter, too, and its base is found by what is in it.
    convert_weights(runs / "adapter", tmp_path / "again", "adapter")
    assert read_weights(tmp_path / "again", Hints())[0] == "adapter"


def test_a_kernel_is_the_sum(runs):
    """By hand: `W + alpha / rank * A B`, of the arrays that the run holds."""
    step = choose_step(runs / "run").step_dir
    _, weights = read_weights(step, Hints())
    name = "image_encoder/transformer/block_2/mlp/proj/kernel"
    a, b = (weights.adapter.factors[f"{name}/{side}"].read() for side in "ab")
    wanted = weights.adapter.kernels[name].read() + ALPHA / RANK * a @ b
    found = load(runs / "adapter").variables["params"]["image_encoder"]["transformer"]["blocks"]
    np.testing.assert_allclose(found["mlp"]["proj"]["kernel"][2], wanted, rtol=1e-5, atol=1e-6)
    assert not np.allclose(wanted, weights.adapter.kernels[name].read(), atol=1e-2)


def change(folder, **fields):
    path = folder / "adapter.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, **fields}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("byte", "does not match its SHA-256 in adapter.json: damaged"),
        ("rank", r"/a is \(16, 2\); that of rank 3"),
        ("alpha", "adapter.json.alpha is -1; supported is a positive number"),
        ("spec", "the model spec lacks image"),
        ("list", "spec and evals are to be objects"),
        ("field", "magnitude = 1 is not a field that is known"),
        ("gone", "no checkpoint at .*gone.*give the checkpoint itself, and the adapter as lora="),
        ("other", "no step of .*other does; give the checkpoint itself"),
        ("smaller", r"holds text_encoder/ln_final/bias as \(16,\) of float32, and the model"),
    ],
)
def test_damage_and_another_base_are_refused(runs, tmp_path, harm, words):
    folder = shutil.copytree(runs / "adapter", tmp_path / "adapter")
    about = json.loads((folder / "adapter.json").read_text())
    if harm == "byte":
        file = folder / "adapter.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif harm == "other":
        params = noise(abstract_variables(SPEC)["params"], 9)
        write_checkpoint(tmp_path / "other", SPEC, params, step=3)
        change(folder, base={**about["base"], "path": str(tmp_path / "other")})
    else:
        spec = about["spec"]
        fields = {
            "rank": {"rank": 3},
            "alpha": {"alpha": -1},
            "spec": {"spec": {k: v for k, v in spec.items() if k != "image"}},
            "list": {"spec": [1]},
            "field": {"magnitude": 1},
            "gone": {"base": {**about["base"], "path": str(tmp_path / "gone")}},
            "smaller": {"spec": {**spec, "text": {**spec["text"], "width": 32}}},
        }[harm]
        change(folder, **fields)
    with pytest.raises(WeightFileError, match=words):
        load(folder)


def test_what_holds_no_factors_is_no_adapter(runs, tmp_path):
    with pytest.raises(ValueError, match="holds no factors of low rank"):
        convert_weights(runs / "base", tmp_path / "x", "adapter")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="is an adapter: leave lora="):
        load(runs / "adapter", lora=runs / "adapter")
    with pytest.raises(ValueError, match="leave lora_alpha= out"):
        load(runs / "base", lora=runs / "adapter", lora_alpha=3.0)


@pytest.mark.parametrize(
    ("lora", "words"),
    [(None, "its config has lora = None"), ({"rank": 4, "alpha": 2.0}, "that of rank 4")],
)
def test_a_run_whose_factors_do_not_fit_is_damaged(runs, tmp_path, lora, words):
    params = dict(load_params(choose_step(runs / "base").step_dir))
    kernel = {"kernel": {"a": np.ones((16, 2), np.float32), "b": np.ones((2, 8), np.float32)}}
    params[LORA] = {"text_projection": kernel}
    write_checkpoint(tmp_path, SPEC, params, config={"lora": lora})
    for read in (load, lambda path: convert_weights(path, tmp_path / "x", "clipjax")):
        with pytest.raises(WeightFileError, match=words):
            read(tmp_path)
