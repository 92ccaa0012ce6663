"""The shipped fine-tuning of the quickstart's model: each mode trains what it says."""

import re

import numpy as np
import pytest
from idx_files import write_idx

import clipjax as library
from clipjax.trees import flatten_with_names

pytestmark = pytest.mark.slow

LAST = r"image_encoder/transformer/block_3/|image_encoder/ln_post|image_projection"
TRAINED = {
    "image": "image_",
    "full": "",
    "lit": "text_|logit_scale",
    "last": LAST,
    "lora": r"image_encoder/transformer/block_\d/.*kernel",
}


@pytest.fixture(scope="module")
def start(clipjax, tmp_path_factory):
    """Two steps of the quickstart, and a few pictures in the format of Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("start")
    config = ("--config", "configs/quickstart.py:steps=2", "--config.batch_size=16")
    clipjax("train", *config, "--workdir", folder / "run", "--config.report=false")
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 64), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        write_idx(folder, images, labels, prefix)
    return folder


def leaves_of(path):
    """Parameters by name, each block by itself."""
    found = {}
    for name, leaf in flatten_with_names(library.load(path).variables["params"]):
        if "/blocks/" in name:
            for number, row in enumerate(np.asarray(leaf)):
                found[name.replace("blocks", f"block_{number}")] = row
        else:
            found[name] = np.asarray(leaf)
    return found


@pytest.mark.parametrize("mode", TRAINED)
def test_a_mode_trains_what_it_says(clipjax, start, tmp_path, mode):
    config = f"configs/fashion_mnist.py:checkpoint={start / 'run'},data={start},mode={mode},steps=4"
    flags = ("--config.batch_size=16", "--config.report=false")
    clipjax("train", "--config", config, "--workdir", tmp_path, *flags)
    before, after = leaves_of(start / "run"), leaves_of(tmp_path)
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved == {name for name in before if re.match(TRAINED[mode], name)}
