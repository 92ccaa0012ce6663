"""Every table that a config names rows of takes `module:Name` as well, by one resolver."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoints import write_checkpoint
from small_weights import CLIP, assert_same, leaves_of

import clipjax
from clipjax import importing
from clipjax.building import ANY_MODULE, resolve
from clipjax.config import default_config, to_plain, validate
from clipjax.data import Loader, make_source
from clipjax.data.images.preprocess import Preprocess
from clipjax.evals.naming import name_evals
from clipjax.experiment import resolve as resolve_config
from clipjax.interop.formats import FORMATS, Format
from clipjax.losses import clip_loss, make_loss
from clipjax.optim import make_optimizer, make_schedule
from clipjax.partitioning.rules import LOGICAL_AXIS_RULES
from clipjax.tokenizers import ClipBPE


def loss(image_embeds, text_embeds, logit_scale, logit_bias=None):
    return 1000 + clip_loss(image_embeds, text_embeds, logit_scale, logit_bias)


def momentum(*, b1):
    return optax.trace(b1)


def halved(*, learning_rate, steps):
    return optax.exponential_decay(learning_rate, steps, 0.5)


class Squares:
    class_names = None

    def __init__(self, size: int):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"key": str(index), "image": np.zeros((4, 4, 3), np.uint8), "text": "a square"}

    def fingerprint(self):
        return f"squares {self.size}"


def whole():
    """A table of rules that cuts nothing but the batch."""
    return LOGICAL_AXIS_RULES["replicated"]


def no_axis():
    return dataclasses.replace(whole(), optimizer=(("widht", "fsdp"),))


def boxed():
    """A format of weights: a checkpoint of ours inside of a folder, which no other recognises."""
    ours = FORMATS["clipjax"]

    def write(path, weights):
        path.mkdir()
        ours.write(path / "box", weights)

    return Format(lambda *_: False, lambda path, hints: ours.read(path / "box", hints), write)


@pytest.fixture(autouse=True)
def lab(monkeypatch):
    module = types.ModuleType("my_lab")
    for each in (loss, momentum, halved, Squares, whole, no_axis, boxed):
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, "my_lab", module)


def test_a_loss():
    rows, scale = jnp.eye(4, 8), jnp.ones(())
    made = make_loss("my_lab:loss", plugins=ANY_MODULE)
    ours, metrics = made(rows, rows, scale)
    assert ours == 1000 + make_loss("clip")(rows, rows, scale)[0]
    assert metrics
    with pytest.raises(ValueError, match='runs with layout "dense" only'):
        make_loss("my_lab:loss", layout="ring", plugins=ANY_MODULE)
    with pytest.raises(ValueError, match=r"^loss\.name = 'my_lab:loss'.*plugins="):
        make_loss("my_lab:loss")
    with pytest.raises(ValueError, match=r"^loss\.name = 'clop'.*clip, siglip"):
        make_loss("clop")


def test_an_optimizer():
    params = {"kernel": np.ones((2, 2), np.float32)}
    rate = optax.constant_schedule(1.0)
    how = {"schedule": rate, "weight_decay": 0.0, "b1": 0.5}
    tx = make_optimizer(params, name="my_lab:momentum", plugins=ANY_MODULE, **how)
    state = tx.init(params)
    first, state = tx.update(params, state, params, step=0)
    second, _ = tx.update(params, state, params, step=1)
    np.testing.assert_allclose([first["kernel"][0, 0], second["kernel"][0, 0]], [-1, -1.5])
    with pytest.raises(ValueError, match=r"^name = 'my_lab:momentum'.*plugins="):
        make_optimizer(params, name="my_lab:momentum", **how)
    with pytest.raises(ValueError, match=r"^name = 'adam'.*adamw, .*lion"):
        make_optimizer(params, name="adam", **how)


def test_a_schedule():
    how = {"learning_rate": 8.0, "total_steps": 20}
    made = make_schedule("my_lab:halved", warmup_steps=10, plugins=ANY_MODULE, **how)
    np.testing.assert_allclose([made(0), made(5), made(10), made(20)], [0, 4, 8, 4], rtol=1e-6)
    with pytest.raises(ValueError, match=r"^name = 'my_lab:halved'.*plugins="):
        make_schedule("my_lab:halved", **how)
    with pytest.raises(ValueError, match=r"^name = 'cosin'.*cosine"):
        make_schedule("cosin", **how)


def test_a_table_of_sharding_rules():
    config = default_config()
    config.data.source, config.model.name, config.sharding = (
        "synthetic:64",
        "ViT-B-32",
        "my_lab:whole",
    )
    assert resolve_config(config).rules == LOGICAL_AXIS_RULES["replicated"]
    for name, words in (
        ("no_axis", r"^config\.sharding\.optimizer\[0\] = \('widht', 'fsdp'\): a rule is a pair"),
        ("boxed", r"^config\.sharding = 'my_lab:boxed' gives a Format"),
        ("absent", r"^config\.sharding = 'my_lab:absent' cannot be imported"),
    ):
        config.sharding = f"my_lab:{name}"
        with pytest.raises(ValueError, match=words):
            resolve_config(config)


def test_a_format_of_weights(tmp_path, command):
    ours, box, again = write_checkpoint(tmp_path / "run", CLIP), tmp_path / "box", tmp_path / "new"
    own = "my_lab:boxed"
    done = command("convert", f"--from={ours}", f"--to={box}", f"--format={own}")
    assert done.code == 0, done.err
    done = command("convert", f"--from={box}", f"--to={again}")
    assert done.code == 1 and "a directory of none of the formats" in done.err
    done = command("convert", f"--from={box}", f"--to={again}", f"--from_format={own}")
    assert done.code == 0, done.err
    assert_same(leaves_of(again), leaves_of(ours))
    texts = ["a cat"]
    np.testing.assert_array_equal(
        clipjax.load(box, format=own).encode_text(texts), clipjax.load(ours).encode_text(texts)
    )
    with pytest.raises(ValueError, match=r"^format = 'my_lab:whole' gives a ShardingRules"):
        clipjax.load(box, format="my_lab:whole")


def test_a_source():
    spec = {"name": "my_lab:Squares", "size": 3}
    source = make_source(spec, plugins=ANY_MODULE)
    assert len(source) == 3
    assert source[2]["key"] == "2"
    with pytest.raises(ValueError, match=r"data\.source\.name = 'my_lab:Squares'.*plugins="):
        make_source(spec)
    with pytest.raises(ValueError, match="sise is not a field"):
        make_source({**spec, "sise": 4}, plugins=ANY_MODULE)
    with pytest.raises(ValueError, match="is empty"):
        make_source({**spec, "size": 0}, plugins=ANY_MODULE)
    config = default_config()
    with config.ignore_type():
        config.data.source = spec
    validate(config)
    assert to_plain(config.data.source) == spec
    (name,) = name_evals([("retrieval", spec)])
    assert name.dataset == "my_lab_Squares"


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["--config", "configs/x.py:a=1"], "configs"),
        (["--workdir", "w", "--config=/a/b.py"], "/a"),
        (["--config=x.py:b"], "."),
        (["--config.seed=3"], None),
        (["--config"], None),
    ],
)
def test_the_folder_of_a_config(arguments, folder):
    found = importing.folder_of_config(arguments)
    assert (None if found is None else str(found)) == folder


def test_folders_become_importable_behind_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(importing, "FINDER", importing.LastFinder())
    # `orbax` and `google` are packages without __init__.py, which a module hides from behind.
    for name in ("json", "numpy", "orbax", "google", "no_such_library"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('hidden')")
    (tmp_path / "desk_lab.py").write_text(
        "import desk_part\ndef answer():\n    return desk_part.number"
    )
    (tmp_path / "desk_part.py").write_text("number = 42")
    importing.make_importable([tmp_path, tmp_path])
    assert importing.importable_folders() == (str(tmp_path),)
    for name in ("json", "numpy", "orbax", "google"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        assert "hidden" not in str(importlib.util.find_spec(name).loader), name
        assert str(tmp_path) not in str(importlib.util.find_spec(name).origin), name
    # What a library tries for is not looked for there; what a person names is.
    for name in ("no_such_library", "desk_lab"):
        assert importlib.util.find_spec(name) is None
    found = resolve("desk_lab:answer", {}, path="x", plugins=ANY_MODULE)
    assert found() == 42
    for name in ("desk_lab", "desk_part"):
        monkeypatch.delitem(sys.modules, name)


HOSTILE = (
    "from pathlib import Path; Path(__file__).with_suffix('.ran').touch(); raise SystemExit(3)"
)


@pytest.fixture
def hostile_folder(tmp_path, monkeypatch):
    """A folder of data to stand in, with modules called as those that are installed."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("absl", "json", "numpy", "orbax", "PIL", "socket", "pickle"):
        (folder / f"{name}.py").write_text(HOSTILE)
    monkeypatch.chdir(folder)
    return folder


def test_the_module_is_started_in_a_folder_of_others(hostile_folder):
    source = str(Path(importing.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-m", "clipjax", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == clipjax.__version__, done.stderr
    assert list(hostile_folder.glob("*.ran")) == []


def test_workers_are_started_in_a_folder_of_others(hostile_folder):
    with Loader(
        make_source("synthetic:4"),
        (),
        ClipBPE(context_length=8),
        batch_size=2,
        preprocess=Preprocess(4),
        seed=0,
        num_workers=1,
        workers="processes",
    ) as loader:
        assert loader.batch(0)["image"].shape == (2, 4, 4, 3)
    assert list(hostile_folder.glob("*.ran")) == []
