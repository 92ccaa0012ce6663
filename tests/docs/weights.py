"""Weight files of others, small, under the names that the page on conversions uses.

Runs as a program, `python weights.py FOLDER`: it makes the zoo small for its whole process.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent.parent
for folder in ("helpers", "interop", "models", "golden/models", "golden/interop"):
    sys.path.insert(0, str(TESTS / folder))

from small_clipjax import shrink_all  # noqa: E402  found by those paths

shrink_all()

# These read the zoo when they are imported, so they come after it has become small.
import seeded  # noqa: E402
from hugging_face_case import make_directory, save_tower  # noqa: E402
from library_folder import write_openai  # noqa: E402
from naming_case import save, save_torch  # noqa: E402
from vocabularies import sentencepiece_model  # noqa: E402

from clipjax.config import to_plain  # noqa: E402
from clipjax.interop import Weights, big_vision, expected_shapes, export  # noqa: E402
from clipjax.interop.files import open_tensors  # noqa: E402
from clipjax.interop.formats import FORMATS  # noqa: E402
from clipjax.interop.open_clip import leaves  # noqa: E402
from clipjax.interop.tensors import of_array  # noqa: E402
from clipjax.models import MODELS  # noqa: E402


def seeded_leaves(spec):
    return {
        name: of_array(seeded.weight(name.replace("/", "."), shape))
        for name, shape in expected_shapes(spec).items()
    }


def weights_of(name):
    spec = to_plain(MODELS[name])
    return Weights(spec, seeded_leaves(spec), source="drawn from a seed")


def write_big_vision(path):
    spec = to_plain(MODELS["siglip-b-16-224"])
    tensors = export(big_vision.leaves(spec), seeded_leaves(spec))
    np.savez(path, **{f"params/{name}": tensor.read() for name, tensor in tensors.items()})


def write_vocabulary(path):
    """SigLIP's ids: 1 ends a text and pads it."""
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    Path(path).write_bytes(sentencepiece_model(**ids))


def open_clip_tensors(name):
    spec = to_plain(MODELS[name])
    found = export(leaves(spec), seeded_leaves(spec))
    return {key: x.read() for key, x in found.items()}


def write_named_otherwise(folder):
    """Files whose tensors carry other names, and one that holds two sets of them."""
    plain = open_clip_tensors("ViT-B-32")
    wrapped = {f"net.clip.{name}": x for name, x in plain.items()}
    save(folder / "lightning.ckpt", {**wrapped, "head.weight": np.zeros((2, 2), np.float32)})
    plain = open_clip_tensors("ViT-B-16")
    towers = {name.replace("visual.", "image_tower."): x for name, x in plain.items()}
    sets = {"epoch": 1, "state_dict": towers, "state_dict_ema": towers}
    with pytest.MonkeyPatch.context() as patch:
        save_torch(folder / "training.pt", sets, patch)
    long = open_clip_tensors("ViT-B-16-quickgelu")
    long["positional_embedding_res"] = long["positional_embedding"]
    save(folder / "longclip-B.pt", long)


def write_lora(folder):
    """An adapter beside the directory that it is of, and weights with their factors."""
    base = folder / "clip-vit-base-patch32"
    FORMATS["hf"].write(base, weights_of("ViT-B-32-quickgelu"))
    width = json.loads((base / "config.json").read_text())["text_config"]["hidden_size"]
    layer = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    adapter = folder / "my_adapter"
    adapter.mkdir()
    factors = {"A": np.ones((2, width), np.float32), "B": np.ones((width, 2), np.float32)}
    named = {f"{layer}.lora_{side}.weight": x for side, x in factors.items()}
    save(adapter / "adapter_model.safetensors", named)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    plain = open_clip_tensors("ViT-B-32-quickgelu")
    outputs, inputs = plain["transformer.resblocks.0.mlp.c_fc.weight"].shape
    layer = "transformer.resblocks.0.mlp.c_fc"
    whole = {f"{layer}.lora_A": np.ones((2, inputs)), f"{layer}.lora_B": np.ones((outputs, 2))}
    save(folder / "whole_state.safetensors", plain | whole)


def write_towers(folder):
    """Directories of one tower beside that of the whole model."""
    whole = folder / "clip-vit-large-patch14"
    FORMATS["hf"].write(whole, weights_of("ViT-L-14-quickgelu"))
    tensors = open_tensors(whole / "model.safetensors").tensors
    tensors = {name: x.read() for name, x in tensors.items()}
    for name in ("my_vision_tower", "vision_tower"):
        save_tower(folder / name, whole, "vision_model.", tensors)
    for name in ("my_text_encoder", "text_tower"):
        save_tower(folder / name, whole, "text_model.", tensors)


def write_all(folder):
    write_named_otherwise(folder)
    write_lora(folder)
    write_towers(folder)
    write_openai(folder / "ViT-B-32.pt")
    write_big_vision(folder / "webli.npz")
    write_vocabulary(folder / "c4_en.model")
    make_directory(folder / "DIRECTORY", "siglip")
    mine = weights_of("ViT-B-32-quickgelu")
    for name in ("mine", "multilingual"):
        FORMATS["clipjax"].write(folder / "runs" / name, mine)
    plain = weights_of("ViT-B-32")
    FORMATS["open_clip"].write(folder / "open_clip_model.safetensors", plain)
    FORMATS["open_clip"].write(folder / "FOLDER", plain)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
