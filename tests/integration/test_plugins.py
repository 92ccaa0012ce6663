"""Whatever a config names may be of one's own: a module beside the config is all it takes."""

import json

import pytest

LAB = """
import hashlib

import numpy as np
import optax

from clipjax.losses import clip_loss
from clipjax.models.text_transformer import TextTransformer
from clipjax.models.vit import VisionTransformer
from clipjax.tokenizers import ClipBPE


class Image(VisionTransformer):
    pass


class Text(TextTransformer):
    pass


class Words(ClipBPE):
    def contract(self):
        return {**super().contract(), "name": "my_lab.parts:Words"}


class Squares:
    class_names = ("dark", "light")

    def __init__(self, size: int, side: int = 16):
        self.size, self.side = size, side

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image = np.full((self.side, self.side, 3), 255 * (index % 2), np.uint8)
        text = self.class_names[index % 2]
        return {"key": str(index), "image": image, "text": text, "label": index % 2}

    def fingerprint(self):
        return hashlib.sha256(f"{self.size} {self.side}".encode()).hexdigest()


class Dim:
    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, example, rng):
        image = (np.asarray(example["image"]) * self.factor).astype(np.uint8)
        return {**example, "image": image}


def loss(image_embeds, text_embeds, logit_scale, logit_bias=None):
    return 1000 + clip_loss(image_embeds, text_embeds, logit_scale, logit_bias)


def momentum(*, b1):
    return optax.trace(b1)


def halved(*, learning_rate, steps):
    return optax.exponential_decay(learning_rate, steps, 0.5)


class Answer:
    def __init__(self, *, source, answer: float, name: str):
        self.source, self.answer = source, answer

    def run(self, params):
        return {"answer": self.answer, "num_examples": float(len(self.source))}
"""

CONFIG = """
from my_lab import sizes  # the config's own folder is importable for the config, too

from clipjax.config import default_config


def get_config(arg=None):
    config = default_config()
    tower = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "activation": "gelu"}
    tower = {**tower, "layer_norm_eps": 1e-5}
    config.update({"batch_size": sizes.BATCH, "total_steps": 2, "dtype": "float32", "log_every": 1})
    config.model = {
        "name": "mine",
        "embed_dim": 8,
        "image_size": 16,
        "image": {"name": "my_lab.parts:Image", "patch_size": 8, "pooling": "mean", **tower},
        "text": {
            **{"name": "my_lab.parts:Text", "vocab_size": 49408, "context_length": 8},
            **{"pooling": "eot", **tower},
        },
        "tokenizer": {"name": "my_lab.parts:Words"},
        "preprocess": {
            **{"resize": "squash", "interpolation": "bicubic"},
            **{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        },
        "logit_scale": {"init": 10.0, "max": 100.0},
    }
    with config.ignore_type():  # a dict in place of a SPEC
        config.data.source = {"name": "my_lab.parts:Squares", "size": 16}
    config.data.transforms = ({"name": "my_lab.parts:Dim", "factor": 0.5},)
    config.loss.name = "my_lab.parts:loss"
    config.optimizer.name = "my_lab.parts:momentum"
    config.schedule.name = "my_lab.parts:halved"
    config.schedule.warmup_steps = 0
    config.evals.answer = {
        "name": "my_lab.parts:Answer",
        "source": {"name": "my_lab.parts:Squares", "size": 6},
        "answer": 42.0,
    }
    config.report = config.tensorboard = False
    return config
"""


@pytest.mark.slow  # half a minute; the tables alone: tests/trust/test_plugin_tables.py
def test_every_table_takes_a_name_of_one_s_own(clipjax, tmp_path):
    desk = tmp_path / "desk"
    (desk / "my_lab").mkdir(parents=True)
    (desk / "my_lab" / "__init__.py").touch()
    (desk / "my_lab" / "sizes.py").write_text("BATCH = 8\n")
    (desk / "my_lab" / "parts.py").write_text(LAB)
    (desk / "config.py").write_text(CONFIG)
    run = tmp_path / "run"
    clipjax("train", "--config", desk / "config.py", "--workdir", run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(1000 < row["loss"] < 1010 for row in rows)
    assert rows[1]["learning_rate"] < rows[0]["learning_rate"]  # no warm-up, no cosine
    results = json.loads((run / "results.json").read_text())
    found = {
        name: value for name, value in results.items() if name.endswith(("answer", "examples"))
    }
    assert sorted(found.values()) == [6.0, 42.0], results
    manifest = json.loads((run / "checkpoints" / "2" / "manifest.json").read_text())
    assert set(manifest["contract"]["plugins"]) == {
        "my_lab.parts:Image",
        "my_lab.parts:Text",
        "my_lab.parts:Words",
    }
    # Elsewhere nothing of it is importable.
    done = clipjax("convert", "--from", run, "--to", tmp_path / "out", "--plugin=my_lab", check=1)
    assert "No module named 'my_lab'" in done.stderr
    assert "Traceback" not in done.stderr
