"""`clipjax data`: a folder is packed, checked, looked at, scored and filtered."""

import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from archives import png
from data_command import run

from clipjax.data import make_source
from clipjax.data.images.preprocess import Preprocess
from clipjax.encoding.encode_fns import EncodeFns
from clipjax.inference import loading
from clipjax.partitioning import make_mesh

pytestmark = pytest.mark.usefixtures("cache")


class ByNumber:
    """Embeds pictures by their red and captions by the number in them, as angles."""

    spec = {"name": "by_number"}  # noqa: RUF012
    variables = {}  # noqa: RUF012
    batch_size = 8

    def __init__(self, pixels):
        self.pixels, self.preprocess = pixels, Preprocess(4, pixels=pixels)
        self.mesh = make_mesh({"data": 1}, jax.devices()[:1])
        self.encode_fns = EncodeFns(self.encode_image, None, None, None)

    @classmethod
    def read(cls, path, hints, *, preprocess):
        return cls(preprocess)

    @staticmethod
    def encode_image(variables, images):
        return on_circle(images[:, 0, 0, 0])

    def encode_text(self, texts):
        return np.asarray(on_circle([float(text) for text in texts]))


def on_circle(degrees):
    angles = jnp.radians(jnp.asarray(degrees, float))
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, each with a caption that is further off than the one before."""
    path = tmp_path / "folder"
    path.mkdir()
    for number in range(12):
        (path / f"{number:02d}.png").write_bytes(png(number))
        (path / f"{number:02d}.txt").write_text(f"{number + 5 * number}")
    return path


def test_from_a_folder_to_its_best_part(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.setattr(loading, "read_model", ByNumber.read)
    out = tmp_path / "out"
    assert run("pack", "--from", f"folder:{folder}", "--to", out, "--shard_size=5") == 0
    assert f"{out}: 12 examples in 3 shards" in capsys.readouterr().out
    spec = f"tar:{out}/*.tar?ignore=npy"
    assert run("check", spec, "--decode") == 0
    assert "checked 3 parts with 12 examples; damaged: none" in capsys.readouterr().out
    sheet, table = tmp_path / "look/sheet.html", tmp_path / "look/stats.json"
    assert run("stats", spec, "--sheet", sheet, "--json", table) == 0
    assert sheet.read_text().count("<img") == 12
    assert run("stats", spec, "--sheet", sheet.with_suffix(".png"), "--limit=3") == 0
    assert sheet.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(table.read_text())["examples"] == 12
    capsys.readouterr()
    judge = ("--checkpoint", "any", "--preprocess=open_clip")
    assert run("score", spec, *judge, "--out", tmp_path / "new/s.parquet") == 0
    metadata = pq.read_schema(tmp_path / "new/s.parquet").metadata
    assert metadata[b"pixels"] == b"open_clip"
    *_, told = shlex.split(capsys.readouterr().out.strip())
    assert told == f"{spec}&filter={tmp_path}/new/s.parquet:top=0.3"
    best = make_source(told)
    assert [best[i]["text"] for i in range(len(best))] == ["0", "6", "12"]
    (out / "00001.tar").unlink()
    assert run("check", spec) == 1
    assert f"{out}/00001.tar: is missing: manifest.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "--from", "synthetic:3", "--to", "gs://b/out"), "gs://b/out is in a bucket"),
        (("score", "synthetic:3", "--out=s3://b/s.parquet"), "s3://b/s.parquet is in a bucket"),
        (("score", "mix:[]", "--out=s.parquet"), "one by one"),
        (("score", "synthetic:3?filter=a.parquet:top=1", "--out=s.parquet"), "has a filter"),
        (("stats", "synthetic:3", "--sheet=http://b/s.html"), "http://"),
        (("stats", "synthetic:3", "--sheet=s.jpg"), r"s\.jpg: a sheet is a file \.html or \.png"),
        (("stats", "synthetic:3", "--limit=0"), "--limit=0: at least 1"),
        (("stats", "synthetic:3", "--limit=-3"), "--limit=-3: at least 1"),
        (("stats", "synthetic:3", "--json=/dev/null/s.json"), "cannot be written, /dev/null does"),
        (("stats", "synthetic:3", "--sheet=/dev/null/s.png"), "cannot be written"),
        (("score", "synthetic:3", "--out=/dev/null/s.parquet"), "cannot be written|exists"),
        (("pack", "--from=synthetic:3", "--to=o", "--max_bad_fraction=-1"), "allowed are 0..1"),
        (("pack", "--from=synthetic:3", "--to=o", "--max_bad_fraction=nan"), "allowed are 0..1"),
        (("pack", "--from=synthetic:3", "--to=o", "--max_bad_fraction=2"), "allowed are 0..1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(*arguments, "--checkpoint=none")
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_is_counted(tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text('{"image": "1.png", "text": {"en": "a"}}\n' * 3)
    (tmp_path / "1.png").write_bytes(png(1))
    assert run("check", f"jsonl:{tmp_path}/t.jsonl?language=fr") == 1
    told = "with 3 examples; left out on purpose: 3 filtered_language; damaged: 1"
    assert told in capsys.readouterr().out


def test_scores_that_exist_are_seen_before_the_model_is_loaded(tmp_path):
    out = tmp_path / "s.parquet"
    out.touch()
    with pytest.raises(ValueError, match=r"s\.parquet exists; give another name"):
        run("score", "synthetic:3", "--out", out, "--checkpoint=none")
