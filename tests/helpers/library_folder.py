"""A folder as somebody's programs find theirs: a published model, small, pictures and shards."""

import io
import os
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).parent.parent
sys.path.append(str(TESTS / "interop"))

# The next are found by that path, so they come after it.
from naming_case import save_torch  # noqa: E402
from small_weights import noise, small  # noqa: E402

from clipjax.interop import Weights, export  # noqa: E402
from clipjax.interop.formats import FORMATS  # noqa: E402
from clipjax.interop.open_clip import names  # noqa: E402
from clipjax.interop.tensors import of_array  # noqa: E402

# ViT-B-32's interface, and hardly any tower.
SPEC = small(
    "ViT-B-32-quickgelu",
    image={"width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64},
    text={"width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64},
)


def weights(spec=SPEC, seed=0):
    """Weights drawn from a seed, small enough that embeddings differ."""
    leaves = {name: 0.1 * x for name, x in noise(spec, seed).items()}
    leaves["logit_scale"] = np.array(np.log(100), np.float32)
    return Weights(spec, {name: of_array(x) for name, x in leaves.items()}, source="noise")


def write_openai(path):
    """An archive as OpenAI's: the state dict, and three numbers."""
    tensors = {k: x.read() for k, x in export(names.leaves(SPEC), weights().leaves).items()}
    numbers = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), np.float32(1))
    with pytest.MonkeyPatch.context() as patch:
        save_torch(path, {**tensors, **{k: np.array(x) for k, x in numbers.items()}}, patch)


def picture(number):
    random = np.random.default_rng(number)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_folder(folder):
    """Writes what the programs of docs/library.md name."""
    write_openai(folder / "ViT-B-32.pt")
    FORMATS["hf"].write(folder / "clip-vit-base-patch32", weights())
    for name, number in (("a.jpg", 0), ("b.jpg", 1)):
        (folder / name).write_bytes(picture(number))
    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"{shard:05d}.tar", "w") as archive:
            for i in range(16):
                for end, data in (("jpg", picture(i)), ("txt", f"picture {i}".encode())):
                    info = tarfile.TarInfo(f"{shard}{i:03d}.{end}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder


@contextmanager
def standing_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
