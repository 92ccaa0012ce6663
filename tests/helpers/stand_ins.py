"""A model whose answers can be looked up: a first pixel, or a first token, names a row."""

import io
import re

import jax
import numpy as np
from PIL import Image

from clipjax.data.images.preprocess import Preprocess
from clipjax.partitioning import make_mesh

WIDTH = 8
PREPROCESS = Preprocess(4)


def make_params(seed: int = 0, rows: int = 256) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "text": rng.normal(size=(rows, WIDTH)).astype(np.float32),
    }


def encode_image(params, images):
    return params["image"][images[:, 0, 0, 0].astype("int32")]


def encode_text(params, tokens):
    return params["text"][tokens[:, 0]]


def tokenize(texts: list[str]) -> np.ndarray:
    """The first number in a text is its id; ids do not depend on the neighbours in the batch."""
    return np.array([[int(re.search(r"\d+", t)[0]), 0] for t in texts], np.int32)


def picture(row: int) -> np.ndarray:
    return np.full((4, 4, 3), row, np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Source:
    """Examples in a list."""

    def __init__(self, examples, class_names=None):
        self.examples, self.class_names = examples, class_names

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return {"key": f"picture {index}", **self.examples[index]}


def mesh_of(num_devices, **sizes):
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | sizes
    return make_mesh(sizes, jax.devices()[:num_devices])


def evaluation(kind, source, mesh, **changes):
    """An evaluation of the stand-in model."""
    arguments = {
        "source": source,
        "encode_image_fn": encode_image,
        "encode_text_fn": encode_text,
        "preprocess": PREPROCESS,
        "tokenizer": tokenize,
        "mesh": mesh,
        "batch_size": 8,
    }
    return kind(**(arguments | changes))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
