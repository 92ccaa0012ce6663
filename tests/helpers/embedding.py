"""A small index: its model, its pictures, and `clipjax embed` with small shards and batches."""

import numpy as np
import pytest
from checkpoints import write_checkpoint
from commands import in_this_process
from PIL import Image
from tiny import model_and_params, tiny_spec

COUNT = 23  # pictures, of which number 5 is damaged


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A model that nobody trained, and that tells texts and pictures apart."""
    workdir = tmp_path_factory.mktemp("model")
    size = {"patch_size": 8, "depth": 1}, {"vocab_size": 49408, "context_length": 16, "depth": 1}
    spec = tiny_spec(image=size[0], text=size[1])
    write_checkpoint(workdir, spec, model_and_params(spec)[1])
    return workdir


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of pictures with captions, one of them damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 255, (4, 5, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"picture {number}\nnumber {number}")
    (folder / "05.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def index(checkpoint, pictures, tmp_path_factory):
    """Their embeddings, in shards of 8 examples."""
    out = tmp_path_factory.mktemp("embedded") / "index"
    with in_this_process() as command:
        done = embed(command, checkpoint, f"folder:{pictures}", out)
    assert done.code == 0, done.err
    assert "left out, image_format: 1" in done.out and "22 embeddings of 8 numbers" in done.out
    return out


def embed(command, checkpoint, spec, out, *flags):
    return command(
        *("embed", f"--checkpoint={checkpoint}", f"--data={spec}", f"--out={out}"),
        *("--shard_size=8", "--batch_size=4", "--max_bad_fraction=0.1", *flags),
    )
