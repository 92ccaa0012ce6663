"""`clipjax classify` on folders of pictures, with labels of a file, as softmax or sigmoid."""

import json

import numpy as np
import pytest
from checkpoints import write_checkpoint
from PIL import Image
from tiny import tiny_spec

import clipjax


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    (folder / "more").mkdir()
    for name in ("a.png", "b.PNG", "more/c.png", ".hidden.png"):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / name)
    (folder / "more" / "d.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize("bias", [None, -1.0], ids=["softmax", "sigmoid"])
def test_a_folder_is_classified_as_the_model_was_trained(command, pictures, tmp_path, bias):
    text = {"vocab_size": 49408, "context_length": 16, "depth": 1}
    write_checkpoint(
        tmp_path / "run",
        tiny_spec(image={"patch_size": 8, "depth": 1}, text=text, logit_bias=bias),
    )
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    flags = (
        f"--checkpoint={tmp_path}/run",
        "--labels=horse",
        f"--labels_from={tmp_path}/labels.txt",
    )
    (tmp_path / "empty").mkdir()
    more = (f"--json={tmp_path}/found.json", pictures, tmp_path / "empty")
    done = command("classify", *flags, "--max_bad=1", *more)
    assert done.code == 0, done.err
    assert "left out, image_format: 1" in done.out and "empty holds no picture" in done.err
    told = (tmp_path / "found.json").read_text()
    (tmp_path / "found.json").unlink()
    strict = command("classify", *flags, *more)  # the others are answered all the same
    assert strict.code == 1 and strict.out == done.out
    assert "1 of 4 pictures cannot be used ({'image_format': 1})" in strict.err, strict.err
    assert "--max_bad 1" in strict.err and (tmp_path / "found.json").read_text() == told
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["probabilities"] == ("softmax" if bias is None else "sigmoid")
    assert found["left_out"] == {"image_format": 1}
    paths = [pictures / name for name in ("a.png", "b.PNG", "more/c.png")]
    assert [one["picture"] for one in found["pictures"]] == list(map(str, paths))
    expected = clipjax.load(tmp_path / "run").classify(paths, ["horse", "cat", "dog"])
    for one, ranked in zip(found["pictures"], expected, strict=True):
        assert list(one["labels"]) == [name for name, _ in ranked]
        assert list(one["labels"].values()) == pytest.approx([p for _, p in ranked], abs=1e-5)
    total = sum(found["pictures"][0]["labels"].values())
    assert (total == pytest.approx(1, abs=1e-5)) == (bias is None)
    for paths, words in {
        (pictures,): "d.jpg",
        (pictures / "none.png",): "none.png cannot be used: there is no such file",
        (tmp_path / "run",): "holds no picture",
        (): "name one or more pictures",
    }.items():
        done = command("classify", *flags, *paths)
        assert done.code == 1 and words in done.err and "Traceback" not in done.err
