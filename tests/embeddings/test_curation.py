"""From raw pairs to a training: embed, dedup, score, filter, train, through the commands."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedding import embed
from PIL import Image

CONFIG = "--config=configs/smoke.py:steps=3,batch_size=8"


@pytest.fixture
def raw(tmp_path):
    """24 pictures, of which three are one in three sizes, and one that is damaged."""
    folder, rng = tmp_path / "raw", np.random.default_rng(1)
    folder.mkdir()
    for number in range(24):
        pixels = rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        if number in (3, 7, 9):
            pixels = np.full((8 * number, 8 * number, 3), (250, 20, 20), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"picture of number {number}")
    (folder / "05.png").write_bytes(b"no picture")
    return f"folder:{folder}"


@pytest.mark.slow
def test_what_is_left_of_raw_pairs_is_trained_on(raw, checkpoint, command, tmp_path):
    def run(*arguments):
        done = command(*arguments)
        assert done.code == 0, done.err
        return done

    done = embed(command, checkpoint, raw, tmp_path / "index")
    assert done.code == 0 and "left out, image_format: 1" in done.out, done.err
    unique, scores = tmp_path / "unique.parquet", tmp_path / "scores.parquet"
    index = (f"--index={tmp_path}/index", "--threshold=0.999999", f"--out={unique}")
    assert "kept: 21 of 23; left out: 2" in run("dedup", *index).out
    judge = (f"--checkpoint={checkpoint}", f"--out={scores}")
    said = run("data", "score", raw, *judge)
    assert "image_format" in said.out + said.err
    spec = f"{raw}?filter={unique}:min=1,{scores}:top=0.5"
    # The damaged picture has neither a place among the duplicates nor a score.
    first = "keeps 21 of 24 examples: {'kept': 21, 'filtered_score': 2, 'without_score': 1}"
    second = "keeps 10 of 21 examples: {'kept': 10, 'filtered_score': 11, 'without_score': 0}"
    run_flags = (f"--config.data.source={spec}", f"--workdir={tmp_path}/run")
    for verb in (("data", "stats", spec), ("train", CONFIG, *run_flags)):
        told = run(*verb).err
        assert first in told and second in told, told
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [row for row in map(json.loads, lines) if "loss" in row]
    assert trained[-1]["step"] == 3 and np.isfinite(trained[-1]["loss"])
    kept = pq.read_table(scores).to_pydict()
    best = dict(zip(kept["key"], kept["score"], strict=True))
    assert len(best) == 23 and "05.png" not in best
