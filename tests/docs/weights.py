"""Weight files of others, small, under the names that the page on conversions uses.

Runs as a program, `python weights.py FOLDER`: it makes the zoo small for its whole process.
"""

import sys
from pathlib import Path

import numpy as np
import sentencepiece

TESTS = Path(__file__).parent.parent
for folder in ("interop", "models", "golden/models", "golden/interop"):
    sys.path.insert(0, str(TESTS / folder))

from small_clipjax import shrink_all  # noqa: E402

shrink_all()

import seeded  # noqa: E402  the helpers read the zoo
from hugging_face_case import make_directory  # noqa: E402

from clipjax.config import to_plain  # noqa: E402
from clipjax.interop import Weights, big_vision, expected_shapes, export  # noqa: E402
from clipjax.interop.files import save_safetensors  # noqa: E402
from clipjax.interop.formats import FORMATS  # noqa: E402
from clipjax.interop.open_clip import leaves  # noqa: E402
from clipjax.interop.tensors import of_array  # noqa: E402
from clipjax.models import MODELS  # noqa: E402

CAPTIONS = ["a red circle", "a blue square", "two green dogs", "the cat and the hat"]


def seeded_leaves(spec):
    return {
        name: of_array(seeded.weight(name.replace("/", "."), shape))
        for name, shape in expected_shapes(spec).items()
    }


def weights_of(name):
    spec = to_plain(MODELS[name])
    return Weights(spec, seeded_leaves(spec), source="drawn from a seed")


def write_openai(path):
    """What the archive holds beside the weights tells whose it is, whatever the container."""
    spec = to_plain(MODELS["ViT-B-32-quickgelu"])
    tensors = export(leaves(spec), seeded_leaves(spec))
    tensors = {name: x.astype(np.float16) for name, x in tensors.items()}
    sizes = {
        "input_resolution": spec["image_size"],
        "context_length": spec["text"]["context_length"],
        "vocab_size": spec["text"]["vocab_size"],
    }
    numbers = {name: of_array(np.array(value)) for name, value in sizes.items()}
    save_safetensors(path, {**tensors, **numbers}, {})


def write_big_vision(path):
    spec = to_plain(MODELS["siglip-b-16-224"])
    tensors = export(big_vision.leaves(spec), seeded_leaves(spec))
    np.savez(path, **{f"params/{name}": tensor.read() for name, tensor in tensors.items()})


def write_vocabulary(path):
    """SigLIP's ids: 1 ends a text and pads it."""
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS * 20),
            model_writer=file,
            vocab_size=40,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )


def write_all(folder):
    write_openai(folder / "ViT-B-32.pt")
    write_big_vision(folder / "webli.npz")
    write_vocabulary(folder / "c4_en.model")
    make_directory(folder / "DIRECTORY", "siglip")
    mine = weights_of("ViT-B-32-quickgelu")
    FORMATS["clipjax"].write(folder / "runs" / "mine", mine)
    plain = weights_of("ViT-B-32")
    FORMATS["open_clip"].write(folder / "open_clip_model.safetensors", plain)
    FORMATS["open_clip"].write(folder / "FOLDER", plain)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
