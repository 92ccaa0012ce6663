"""The programs of docs/hand_off.md, run as a reader runs them: needs the [interop] extra."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from counting import HANGS_S
from PIL import Image
from tiny import tiny_spec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "docs"))

from blocks import blocks_of  # noqa: E402  found by that path

pytestmark = pytest.mark.interop
BLOCKS = blocks_of(ROOT / "docs" / "hand_off.md")
PROGRAMS = {block.file: block.text for block in BLOCKS if block.language == "python"}


def run(folder, *command):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=3 * HANGS_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Runs a program of the page in a folder with a photo and what its first command makes."""
    folder = tmp_path_factory.mktemp("hand_off")
    text = {"vocab_size": 49408, "context_length": 77}
    (folder / "runs").mkdir()
    write_checkpoint(folder / "runs" / "mine", tiny_spec(image={"patch_size": 8}, text=text))
    # Square: of others transformers may cut one pixel beside (docs/interop.md).
    pixels = np.random.default_rng(0).integers(0, 255, (5, 5, 3), np.uint8)
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(folder / "photo.jpg")
    first = next(block for block in BLOCKS if block.language == "bash").text.splitlines()[0]
    assert first.startswith("clipjax convert "), first
    run(folder, sys.executable, "-m", *first.split())

    def start(name):
        (folder / name).write_text(PROGRAMS[name], encoding="utf-8")
        return run(folder, sys.executable, name)

    start.folder = folder
    return start


def test_the_text_encoder_and_the_vision_tower_give_our_tokens(program):
    program("text_encoder.py")
    with Image.open(program.folder / "drawn.png") as drawn:
        assert drawn.size == (16, 16)
    assert (program.folder / "mine_diffusion" / "text_encoder" / "config.json").is_file()
    assert "tensor(" in program("vision_tower.py")
    assert (program.folder / "mine_llava" / "config.json").is_file()
    told = program("same_tokens.py")
    assert "image tokens: largest difference" in told and "text tokens" in told
    # The comparison sees another tower's tokens.
    path = program.folder / "text_tokens.npy"
    np.save(path, np.load(path) + 1e-3)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        program("same_tokens.py")


def test_both_towers_run_as_onnx(program):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    told = program("to_onnx.py")
    assert "image: largest difference" in told and "text: largest difference" in told
    assert (program.folder / "image.onnx").is_file() and (program.folder / "text.onnx").is_file()


def test_every_program_of_the_page_is_run():
    """Those above, and no other."""
    names = {"text_encoder.py", "vision_tower.py", "same_tokens.py", "to_onnx.py"}
    assert set(PROGRAMS) == names
