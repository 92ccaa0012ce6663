"""Directories of transformers made of the golden arrays: tiny models with seeded weights."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import seeded
from PIL import Image

from clipjax.interop import hugging_face
from clipjax.interop.files import save_safetensors
from clipjax.interop.tensors import of_array
from clipjax.interop.weights import Hints
from clipjax.models import build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.tokenizers.wordpiece import VOCABULARY
from clipjax.trees import unflatten_names

GOLDEN = Path(__file__).parent.parent / "golden" / "interop"
CASES = ("clip", "siglip", "align", "chinese_clip", "dual_encoder")
# Padding is masked in these: its rows are of no consequence, and not computed alike.
MASKED = ("align", "chinese_clip", "dual_encoder")
BATCH, IMAGE_SIZE, LENGTH = 4, 32, 16
TEMPERATURE = np.float32(0.08)
TEXTS = [
    "a photo of a cat",
    "A Photo, of 2 CATS!",
    "the dog's picture " * 9,
    "x",
    "caf\u00e9 zebra",
]
CHINESE = [
    "\u4e00\u53ea\u732b\u7684\u7167\u7247",
    "\u4e24\u53ea\u72d7, on the \u6c99\u53d1!",
    "\u718a\u732b  Abc 123",
    "\u732b" * 30,
    "",
    "\u9f98 is unknown, caf\u00e9 is not",
]
# Wide and high ones, and one that is too small. Margins are such that transformers, which rounds
# the offset of the crop down, cuts where OpenAI's pipeline does, which rounds it to even.
PICTURES = ((60, 45), (33, 66), (72, 40), (20, 24))


def picture(width, height):
    """Squares of a colour under noise, RGB."""
    random = np.random.RandomState(width * height)
    coarse = random.randint(0, 256, ((height + 7) // 8, (width + 7) // 8, 3))
    pixels = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return Image.fromarray((pixels * 0.8 + random.randint(0, 50, pixels.shape)).astype(np.uint8))


def their_weight(name, shape):
    """A tensor of theirs; the temperature has to be positive."""
    return TEMPERATURE if name == "temperature" else seeded.weight(name, tuple(shape))


def golden(case):
    return dict(np.load(GOLDEN / f"hugging_face_{case}.npz"))


def make_directory(path, case):
    """Writes the directory; returns (golden arrays, their tensors)."""
    arrays = golden(case)
    path.mkdir()
    for name, content in json.loads(str(arrays["files"])).items():
        (path / name).write_text(json.dumps(content))
    if case == "siglip":
        (path / "spiece.model").write_bytes(arrays["spiece.model"].tobytes())
    for file in ("vocab.txt", "tokenizer.json"):
        if file in arrays:
            (path / file).write_bytes(arrays[file].tobytes())
    if case == "align":
        shutil.copyfile(VOCABULARY, path / "vocab.txt")
        (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": LENGTH}))
    tensors = {
        name: np.zeros(shape, np.int64)
        if name.endswith("num_batches_tracked")
        else np.asarray(their_weight(name, shape), np.float32)
        for name, shape in json.loads(str(arrays["shapes"])).items()
    }
    save_tensors(path / "model.safetensors", tensors)
    return arrays, tensors


def save_tensors(file, tensors):
    file.unlink(missing_ok=True)
    lazy = {name: of_array(x) for name, x in tensors.items()}
    save_safetensors(file, lazy, {"format": "pt"})


# By the prefix of a tower: the projection behind it, its part of config.json, its model_type.
TOWERS = {
    "vision_model.": ("visual_projection.weight", "vision_config", "vision_model"),
    "text_model.": ("text_projection.weight", "text_config", "text_model"),
}


def save_tower(path, whole, prefix, tensors, *, projected=True):
    """Writes the directory of one tower of a whole model's, as its own class saves it."""
    projection, section, kind = TOWERS[prefix]
    shutil.copytree(whole, path)
    config = json.loads((whole / "config.json").read_text())
    single = {**config[section], "model_type": f"{config['model_type']}_{kind}"}
    if "projection_dim" in config:
        single["projection_dim"] = config["projection_dim"]
    (path / "config.json").write_text(json.dumps(single))
    names = (prefix, projection) if projected else prefix
    own = {name: x for name, x in tensors.items() if name.startswith(names)}
    save_tensors(path / "model.safetensors", own)
    return path


def read(path, **hints):
    return hugging_face.read(Path(path), Hints(**hints))


def edit(path, file, *keys, value):
    """Changes one field of a JSON file."""
    content = node = json.loads((path / file).read_text())
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    (path / file).write_text(json.dumps(content))


def variables(weights):
    """The variables of a model that `build_model(weights.spec)` takes."""
    tree = unflatten_names({name: x.read() for name, x in weights.leaves.items()})
    tree = stack_layers(tree)
    statistics = tree.pop("batch_stats", None)
    return {"params": tree} | ({"batch_stats": statistics} if statistics else {})


def inputs(spec):
    size = spec["image_size"]
    text = spec["text"]
    tokens = seeded.tokens(BATCH, text["context_length"], text["vocab_size"])
    return seeded.images(BATCH, size), padded_with(text.get("pad_id", 0), tokens)


def padded_with(pad_id, tokens):
    """Tokens that are padded with 0, as those of a vocabulary that pads with 0 or 1."""
    return tokens if pad_id == 0 else np.where(tokens == 0, pad_id, np.maximum(tokens, 2))


@functools.cache
def _compute(spec):
    model = build_model(json.loads(spec))

    def compute(bind, images, tokens):
        out = model.apply(bind, images, tokens)
        text = model.apply(bind, tokens, keep_hidden=True, method="text_features")
        logits = jnp.exp(out.logit_scale) * out.image_embeds @ out.text_embeds.T
        bias = 0.0 if out.logit_bias is None else out.logit_bias
        return out.image_embeds, out.text_embeds, logits + bias, text.hidden

    return jax.jit(compute)


def run(weights, images, tokens):
    """(embeddings of both towers, logits, hidden states of the text's layers)"""
    compute = _compute(json.dumps(weights.spec))
    return jax.device_get(compute(variables(weights), images, tokens))


def final_norm(weights, x):
    """The text tower's last normalisation, of any layer's output."""
    scale, bias = (weights.leaves[f"text_encoder/ln_final/{k}"].read() for k in ("scale", "bias"))
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + weights.spec["text"]["layer_norm_eps"]) * scale + bias
