"""Exported towers run without this package and give what the Model gives."""

import dataclasses
import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import HANGS_S
from jax import export as jax_export
from tiny import NAFLEX, filled, inputs, tiny_spec

from clipjax.array_types import Patches
from clipjax.config import merge
from clipjax.inference import Model
from clipjax.interop import WeightFileError, Weights
from clipjax.interop.converting import convert_weights
from clipjax.interop.files import open_tensors, safetensors, save_safetensors
from clipjax.interop.formats import WRITTEN
from clipjax.interop.reading import recognise
from clipjax.interop.stablehlo import (
    TOWERS,
    export_tower,
    resize_rule,
    tower_fn,
    tower_shapes,
    write,
)
from clipjax.interop.tensors import of_array
from clipjax.models import MODELS, build_model
from clipjax.models.images import normalise_images
from clipjax.models.layers_layout import unstack_layers
from clipjax.trees import flatten_with_names

SIGLIP = {
    "image": {"pooling": "map", "pre_norm": False, "patch_bias": True},
    "text": {"name": "bidirectional_transformer", "pooling": "last"},
    "image_projection": "none",
    "text_projection": "linear_bias",
    "embed_dim": 16,
    "logit_bias": -10.0,
    "preprocess": {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
}
# Runs the README's code as it stands, in a folder, where this package and flax do not exist.
PROGRAM = """
import json, re, sys
for name in ("clipjax", "flax", "optax", "safetensors"):
    sys.modules[name] = None
blocks = re.findall(r"```python\\n(.*?)```", open("README.md").read(), re.S)
import numpy as np
inputs = np.load(sys.argv[1])
contract = json.load(open("contract.json"))
logit_scale, logit_bias = contract["logit_scale"], contract["logit_bias"] or 0
found = {}
for size in (1, 3):
    pixels, tokens = inputs["pixels"][:size], inputs["tokens"][:size]
    for block in blocks:
        exec(block)
    found |= {f"image{size}": image_embeds, f"text{size}": text_embeds, f"logits{size}": logits}
try:
    import clipjax
except ImportError:
    np.savez(sys.argv[2], **found)
"""


def weights_of(spec, variables, **fields):
    unrolled = dict(flatten_with_names(unstack_layers(variables)))
    leaves = {name.removeprefix("params/"): of_array(x) for name, x in unrolled.items()}
    return Weights(spec=spec, leaves=leaves, **fields)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(spec, variables, folder)"""
    spec = merge(tiny_spec(), SIGLIP)
    folder = tmp_path_factory.mktemp("export")
    variables = filled(build_model(spec), *inputs(spec, 1))
    (folder / "vocabulary").write_text("words")
    files = {"spiece.model": folder / "vocabulary"}
    write(folder / "tiny", weights_of(spec, variables, tokenizer_files=files))
    return spec, variables, folder / "tiny"


@pytest.mark.slow
def test_the_readme_runs_without_this_package(exported, tmp_path):
    spec, variables, folder = exported
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    tokens = random.integers(0, 20, (3, 8), dtype=np.int32)
    np.savez(tmp_path / "in.npz", pixels=pixels, tokens=tokens)
    command = [sys.executable, "-I", "-c", PROGRAM, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, cwd=folder, check=True, timeout=HANGS_S)
    found = np.load(tmp_path / "out.npz")
    encoder = Model(spec, variables, tokenizer=lambda texts: tokens[: len(texts)])
    image, text = encoder.encode_image(list(pixels)), encoder.encode_text(["a", "b", "c"])
    logits = np.exp(variables["params"]["logit_scale"]) * image @ text.T
    logits += variables["params"]["logit_bias"]
    for size in (1, 3):
        # Float32 sums by another kernel for another batch size: 1.9e-6 on a CPU without AVX-512.
        assert np.abs(found[f"image{size}"] - image[:size]).max() <= 4e-6
        assert np.abs(found[f"text{size}"] - text[:size]).max() <= 4e-6
        assert np.abs(found[f"logits{size}"] - logits[:size, :size]).max() <= 1e-4
    # The control: the rows differ by far more than the bound.
    assert np.abs(image[0] - image[1]).max() > 1e-2 and np.abs(text[0] - text[1]).max() > 1e-2


def test_the_contract_says_what_the_towers_take(exported):
    spec, variables, folder = exported
    contract = json.loads((folder / "contract.json").read_text())
    assert contract["input"] == {
        "image": {"dtype": "uint8", "shape": ["batch", "16", "16", "3"]},
        "text": {"dtype": "int32", "shape": ["batch", "8"]},
    }
    assert contract["output"]["shape"] == ["batch", "16"]
    assert contract["platforms"] == ["cpu", "tpu", "cuda"]
    assert contract["model"] == json.loads(json.dumps(spec))
    assert contract["logit_scale"] == pytest.approx(np.exp(variables["params"]["logit_scale"]))
    assert contract["logit_bias"] == pytest.approx(float(variables["params"]["logit_bias"]))
    assert (folder / "tokenizer" / "spiece.model").read_text() == "words"
    readme = (folder / "README.md").read_text()
    assert "<" not in re.sub(r"```.*?```", "", readme, flags=re.S)
    for tower in TOWERS:
        program = (folder / f"{tower}.stablehlo").read_bytes()
        assert jax_export.deserialize(bytearray(program)).platforms == ("cpu", "tpu", "cuda")
        # The program holds no parameter.
        parameters = open_tensors(folder / f"{tower}.safetensors").tensors
        assert {name: x.shape for name, x in parameters.items()} == tower_shapes(spec, tower)


def test_running_statistics_are_parameters_of_the_image_tower():
    shapes = tower_shapes(MODELS["RN50"], "image")
    assert shapes["batch_stats/image_encoder/bn1/mean"] == (32,)
    assert not any(name.startswith("batch_stats") for name in tower_shapes(MODELS["RN50"], "text"))


@pytest.mark.slow
def test_running_statistics_go_along():
    spec = tiny_spec(image_size=32, image_projection="none", embed_dim=8)
    spec["image"] = {"name": "modified_resnet", "layers": [1, 1, 1, 1], "width": 8}
    spec["image"] |= {"num_heads": 4, "output_dim": 8}
    assert any(name.endswith("bn1/mean") for name in tower_shapes(spec, "image"))
    variables = filled(build_model(spec), *inputs(spec, 1))
    parameters = dict(flatten_with_names(variables))
    parameters = {name: parameters[name] for name in tower_shapes(spec, "image")}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = export_tower(spec, "image").call(parameters, jnp.asarray(pixels))
    wanted = jax.jit(tower_fn(spec, "image"))(parameters, pixels)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_images_of_any_aspect():
    spec = NAFLEX
    variables = filled(build_model(spec), *inputs(spec, 1))
    parameters = dict(flatten_with_names(variables))
    parameters = {name: parameters[name] for name in tower_shapes(spec, "image")}
    random = np.random.default_rng(0)
    rows = {"pixels": random.integers(0, 256, (3, 8, 48), dtype=np.uint8)}
    rows["grid"] = np.array([[2, 4], [1, 3], [4, 2]], np.int32)
    found = export_tower(spec, "image").call(parameters, jax.tree.map(jnp.asarray, rows))
    encode = jax.jit(functools.partial(build_model(spec).apply, method="encode_image"))
    patches = normalise_images(Patches(**rows), (0.5,) * 3, (0.5,) * 3, jnp.float32)
    np.testing.assert_allclose(found, encode(variables, patches), atol=5e-6)


def test_an_export_is_run_and_not_converted(exported, tmp_path):
    _, _, folder = exported
    with pytest.raises(WeightFileError, match="is an export as StableHLO"):
        convert_weights(folder, tmp_path / "out", "clipjax")
    assert recognise(folder) == "stablehlo" and "stablehlo" in WRITTEN


def test_a_stack_is_written_a_block_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "PIECE_BYTES", 100)
    blocks = np.arange(3 * 40, dtype=np.float32).reshape(3, 4, 10)
    leaves = {f"x/block_{i}/y": of_array(block) for i, block in enumerate(blocks)}
    stacked = Weights({}, leaves).stacked({"params/x/blocks/y": (3, 4, 10)})["params/x/blocks/y"]

    def never():
        raise AssertionError("the stack is read whole")

    save_safetensors(tmp_path / "a", {"a": dataclasses.replace(stacked, read=never)})
    np.testing.assert_array_equal(open_tensors(tmp_path / "a").tensors["a"].read(), blocks)


@pytest.mark.parametrize(
    "fields, rule",
    [
        ({"resize": "shortest"}, "the shorter side to 289 pixels, then the centre of 289 x 289"),
        ({"resize": "squash"}, "to 289 x 289 pixels whatever the aspect"),
        (
            {"resize": "squash", "crop_fraction": 289 / 346},
            "to 346 x 346 pixels whatever the aspect, then the centre of 289 x 289",
        ),
    ],
)
def test_the_readme_says_how_to_resize(fields, rule):
    preprocess = {"size": 289, "interpolation": "bilinear", **fields}
    assert resize_rule(preprocess, {}) == f"bilinear with antialias, {rule}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("siglip2-so400m-14-384", marks=pytest.mark.slow),
        "xlm-roberta-base-ViT-B-32",
    ],
)
def test_a_published_model_becomes_a_small_program(name):
    for tower in TOWERS:
        exported = export_tower(MODELS[name], tower)
        assert exported.out_avals[0].shape[1] == MODELS[name]["embed_dim"]
        assert len(exported.serialize()) < 50_000
