"""Towers as StableHLO programs that run with JAX alone, without this package.

A tower is two files. The program takes its parameters as an argument instead of holding them:
constants would double a model's memory where the program is loaded and again where it is compiled,
and a serialised program may not exceed 2 GB, which a ViT-g in float32 does. The parameters lie in a
safetensors file beside it, stacked over the layers, so that the program is one block's size and
needs no other file to be understood.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from clipjax.array_types import Patches, PyTree
from clipjax.config import to_plain
from clipjax.interop.files import save_safetensors
from clipjax.interop.hugging_face.clip_tokenizer import write_clip_tokenizer
from clipjax.interop.shapes import stacked_shapes
from clipjax.interop.tensors import WeightFileError
from clipjax.interop.weights import NO_HINTS, Hints, Weights
from clipjax.models import build_model
from clipjax.models.images import normalise_images
from clipjax.tokenizers.wordpiece import VOCABULARY
from clipjax.trees import unflatten_names

PLATFORMS = ("cpu", "tpu", "cuda")
TOWERS = ("image", "text")
FORMAT_VERSION = 1
# Its code blocks are run by the tests as they stand.
_README = Path(__file__).with_name("stablehlo_readme.md")

# (parameters by name, rows) -> [batch, embed] float32, of length 1
TowerFn = Callable[[Mapping[str, jax.Array], PyTree], jax.Array]


def recognises(path: Path, hints: Hints = NO_HINTS) -> bool:
    """Whether a path is a folder that `write` wrote."""
    del hints
    return all((path / f"{tower}.stablehlo").is_file() for tower in TOWERS)


def read(path: Path, hints: Hints) -> Weights:
    """Refuses: a program is compiled, not converted.

    Raises:
        WeightFileError: always.
    """
    del hints
    raise WeightFileError(
        f"{path} is an export as StableHLO, which is for running (see its README.md); convert what "
        "it was made from"
    )


def write(path: Path, weights: Weights) -> None:
    """Writes both towers, their parameters, `contract.json` and a README to a new folder."""
    path.mkdir()
    inputs = {}
    for tower in TOWERS:
        exported = export_tower(weights.spec, tower, weights.plugins)
        (path / f"{tower}.stablehlo").write_bytes(exported.serialize())
        stacked = weights.stacked(tower_shapes(weights.spec, tower, weights.plugins))
        save_safetensors(path / f"{tower}.safetensors", stacked, {})
        inputs[tower] = jax.tree.map(
            lambda x: {"dtype": str(x.dtype), "shape": [str(size) for size in x.shape]},
            input_rows(weights.spec, tower),
        )
    (path / "tokenizer").mkdir()
    tokenizer = weights.spec["tokenizer"]
    if tokenizer["name"] == "clip_bpe":  # shipped with clipjax, which the reader may not have
        length = weights.spec["text"]["context_length"]
        write_clip_tokenizer(path / "tokenizer", tokenizer, length)
    elif tokenizer["name"] == "wordpiece" and not weights.tokenizer_files:  # likewise
        shutil.copyfile(VOCABULARY, path / "tokenizer" / "vocab.txt")
    for name, file in weights.tokenizer_files.items():
        shutil.copyfile(file, path / "tokenizer" / Path(name).name)
    contract = _contract(weights, inputs)
    (path / "contract.json").write_text(json.dumps(contract, indent=1) + "\n", encoding="utf-8")
    (path / "README.md").write_text(_readme(contract), encoding="utf-8")


def export_tower(
    spec: Mapping[str, Any], tower: str, plugins: Sequence[str] = ()
) -> jax_export.Exported:
    """Exports a tower for any batch size on all PLATFORMS; no parameter is allocated.

    Returns:
        The program (parameters by name, rows) -> embeddings `[batch, embed]`, of length 1.
    """
    parameters = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in tower_shapes(spec, tower, plugins).items()
    }
    program = jax_export.export(jax.jit(tower_fn(spec, tower, plugins)), platforms=PLATFORMS)
    return program(parameters, input_rows(spec, tower))


def input_rows(spec: Mapping[str, Any], tower: str) -> PyTree:
    """Shapes of what a tower takes, with `batch` for a size that is open.

    Returns:
        text: int32 `[batch, length]`; image: uint8 `[batch, size, size, 3]`, which the program
        normalises; or, for images of any aspect, a dict of the fields of Patches.
    """
    if tower == "text":
        return _open(jnp.int32, f"batch, {spec['text']['context_length']}")
    if spec["preprocess"]["resize"] != "patches":
        return _open(jnp.uint8, f"batch, {spec['image_size']}, {spec['image_size']}, 3")
    scope = jax_export.SymbolicScope()
    size = 3 * spec["image"]["patch_size"] ** 2
    return {
        "pixels": _open(jnp.uint8, f"batch, patches, {size}", scope),
        "grid": _open(jnp.int32, "batch, 2", scope),
    }


def _open(
    dtype: Any, shape: str, scope: jax_export.SymbolicScope | None = None
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape, scope=scope), dtype)


def tower_fn(spec: Mapping[str, Any], tower: str, plugins: Sequence[str] = ()) -> TowerFn:
    """Makes the pure function of a tower that is exported."""
    model = build_model(spec, plugins=plugins)
    mean, std = spec["preprocess"]["mean"], spec["preprocess"]["std"]

    def embed(parameters: Mapping[str, jax.Array], rows: PyTree) -> jax.Array:
        # The temperature belongs to no tower; a model cannot be run without having it.
        scalars = {"params/logit_scale": jnp.zeros(()), "params/logit_bias": jnp.zeros(())}
        variables = unflatten_names({**scalars, **parameters})
        if isinstance(rows, Mapping):
            rows = Patches(**rows)
        if tower == "image":
            rows = normalise_images(rows, mean, std, jnp.float32)
        embeds: Any = model.apply(variables, rows, method=f"encode_{tower}")
        return embeds

    return embed


def tower_shapes(
    spec: Mapping[str, Any], tower: str, plugins: Sequence[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Shapes of a tower's leaves by name: `params/image_encoder/...`, stacked over layers."""
    return {
        name: shape
        for name, shape in stacked_shapes(spec, plugins).items()
        if name.split("/")[1].startswith(f"{tower}_")
    }


def _contract(weights: Weights, inputs: Mapping[str, Any]) -> dict[str, Any]:
    spec = to_plain(weights.spec)
    bias = weights.leaves.get("logit_bias")
    return {
        "format": "clipjax-stablehlo",
        "version": FORMAT_VERSION,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "input": dict(inputs),
        "output": {"dtype": "float32", "shape": ["batch", str(spec["embed_dim"])], "norm": 1},
        # What multiplies the cosines: the exponential of the parameter.
        "logit_scale": float(np.exp(weights.leaves["logit_scale"].read())),
        "logit_bias": None if bias is None else float(bias.read()),
        "preprocess": {"size": spec["image_size"], **spec["preprocess"]},
        "tokenizer": {"context_length": spec["text"]["context_length"], **spec["tokenizer"]},
        "model": spec,
    }


def _readme(contract: Mapping[str, Any]) -> str:
    inputs = {tower: _described(rows) for tower, rows in contract["input"].items()}
    fill = {
        "NAME": contract["model"].get("name") or "model",
        "IMAGE": inputs["image"],
        "TEXT": inputs["text"],
        "LENGTH": str(contract["tokenizer"]["context_length"]),
        "EMBED": contract["output"]["shape"][1],
        "RESIZE": resize_rule(contract["preprocess"], contract["model"]["image"]),
        "TOKENIZER": contract["tokenizer"]["name"],
        "JAX": contract["jax"],
    }
    text = _README.read_text(encoding="utf-8")
    for word, value in fill.items():
        text = text.replace(f"<{word}>", value)
    return text


def _described(rows: Mapping[str, Any]) -> str:
    """`uint8 [batch, 224, 224, 3]`, or a dict of such."""
    if "dtype" in rows:
        return f"{rows['dtype']} [{', '.join(rows['shape'])}]"
    parts = (f'"{name}": {_described(each)}' for name, each in rows.items())
    return "{" + ", ".join(parts) + "}"


def resize_rule(preprocess: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """Says in words how a picture is brought to the size of the program's pixels."""
    how, size = preprocess["interpolation"], preprocess["size"]
    if preprocess["resize"] == "patches":
        return (
            f"{how} with antialias, to whole patches of {image['patch_size']} x "
            f"{image['patch_size']} pixels, {preprocess['max_patches']} at most, at its aspect. "
            "`pixels` are the patches row by row, each its pixels row by row with the channels "
            "last, then padding; `grid` is an image's rows and columns of patches"
        )
    resized = round(size / preprocess.get("crop_fraction", 1.0))
    if preprocess["resize"] == "shortest":
        side = f"the shorter side to {resized} pixels"
    else:
        side = f"to {resized} x {resized} pixels whatever the aspect"
    crop = f", then the centre of {size} x {size}"
    is_whole = preprocess["resize"] == "squash" and resized == size
    return f"{how} with antialias, {side}{'' if is_whole else crop}"
