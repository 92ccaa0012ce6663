import collections
import io
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from checkpoints import write_checkpoint
from PIL import Image
from tiny import tiny_spec

from clipjax.data.images.preprocess import Preprocess
from clipjax.data.sources import make_source
from clipjax.encoding.encode_fns import EncodeFns
from clipjax.inference import Model
from clipjax.inference.scoring import score_pairs, write_scores
from clipjax.partitioning import make_mesh


class ByBrightness:
    """Embeds pictures by their brightness and texts by the number in them: the angle."""

    variables: ClassVar[dict] = {}

    def __init__(self, pixels="clipjax", batch_size=256):
        self.preprocess, self.batch_size = Preprocess(4, pixels=pixels), batch_size
        self.mesh = make_mesh({"data": 1}, jax.devices()[:1])
        self.encode_fns = EncodeFns(self.encode_image, None, None, None)

    @staticmethod
    def encode_image(variables, images):
        angles = images.astype(jnp.float32).mean((1, 2, 3)) / 255
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)

    def encode_text(self, texts):
        angles = np.array([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level,) * 3).save(file, "PNG")
    return file.getvalue()


class Pairs:
    class_names = None
    rows = (
        (png(255), "1.0"),  # agree: 1
        (png(0), ("0.0", "1.0")),  # the mean of 1 and cos 1
        (b"damaged", "0.0"),
        (png(255), {"de": "0.5", "en": "1.5"}),
        (png(0), ()),
    )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        image, text = self.rows[index]
        return {"image": image, "text": text, "key": f"k{index}"}

    def fingerprint(self):
        return "00"


EXPECTED = {"k0": 1.0, "k1": (1 + np.cos(1)) / 2, "k3": np.cos(0.5)}


@pytest.mark.parametrize("batch_size", [2, 256])
def test_scores_are_mean_cosines(batch_size):
    counts = collections.Counter()
    found = {}
    for keys, scores in score_pairs(ByBrightness(batch_size=batch_size), Pairs(), counts):
        found |= dict(zip(keys, scores.tolist(), strict=True))
    assert found == pytest.approx(EXPECTED, abs=1e-6)
    assert counts == {"image_format": 1, "text_empty": 1}


def test_scores_are_of_the_pixels_that_the_encoder_takes():
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(file, "PNG")  # clear: white here, black there
    source = Pairs()
    source.rows = ((file.getvalue(), "0.0"),)
    found = {}
    for pixels in ("clipjax", "open_clip"):
        ((_, scores),) = score_pairs(ByBrightness(pixels), source, collections.Counter())
        found[pixels] = scores.item()
    assert found == pytest.approx({"clipjax": np.cos(1), "open_clip": 1.0})


def test_a_source_is_filtered_by_what_was_written(tmp_path):
    rows = [f'{{"image": "{i}.png", "text": "{text}"}}\n' for i, text in enumerate("0123")]
    for i, level in enumerate((0, 255, 0, 255)):  # 1 fits best after 0
        (tmp_path / f"{i}.png").write_bytes(png(level))
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    spec = f"jsonl:{tmp_path}/pairs.jsonl"
    scored = score_pairs(ByBrightness(), make_source(spec), collections.Counter())
    assert write_scores(tmp_path / "scores.parquet", scored, source=spec) == 4
    best = make_source(f"{spec}?filter={tmp_path}/scores.parquet:top=0.5")
    assert [best[i]["text"] for i in range(len(best))] == ["0", "1"]
    with pytest.raises(ValueError, match="exists"):
        write_scores(tmp_path / "scores.parquet", iter(()))


def test_a_key_that_comes_twice_is_an_error_at_once(tmp_path):
    chunks = iter([(["a", "b"], np.zeros(2, np.float32)), (["c", "a"], np.zeros(2, np.float32))])
    with pytest.raises(ValueError, match="the key 'a' comes twice"):
        write_scores(tmp_path / "scores.parquet", chunks)
    assert list(tmp_path.iterdir()) == []


def test_scores_are_not_written_to_a_folder_named_like_a_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"gs://b/s\.parquet is in a bucket"):
        write_scores("gs://b/s.parquet", iter(()))
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_fails_leaves_no_file(tmp_path):
    def broken():
        yield ["a"], np.zeros(1, np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scores(tmp_path / "scores.parquet", broken())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    write_checkpoint(workdir, tiny_spec(text={"vocab_size": 49408}))
    return workdir


def test_the_command_scores_by_a_checkpoint(checkpoint, tmp_path, command):
    source, out = make_source("synthetic:20?side=32"), tmp_path / "scores.parquet"
    arguments = ("synthetic:20?side=32", "--checkpoint", checkpoint, "--out", out)
    done = command("data", "score", *arguments)
    assert done.code == 0, done.err
    assert f"{out}: 20 scores" in done.out
    found = pq.read_table(out)
    assert found["key"].to_pylist() == [source[i]["key"] for i in range(20)]
    encoder = Model.from_checkpoint(checkpoint)
    images = encoder.encode_image([source[i]["image"] for i in range(20)])
    texts = encoder.encode_text([source[i]["text"] for i in range(20)])
    np.testing.assert_allclose(found["score"], (images * texts).sum(1), atol=1e-6)
    assert np.ptp(found["score"]) > 1e-3  # not all the same
    best = make_source(f"synthetic:20?side=32&filter={out}:top=0.2")
    assert len(best) == 4
