"""Overrides of a config on the command line: what they may say, and what a wrong one is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from counting import HANGS_S

FILE = """
from clipjax.config import default_config

def get_config(arg=None):
    config = default_config()
    config.data.source = "synthetic:64"
    LINE
    return config
"""
# Of the config file -> words of the message.
LINES = {
    "config.init.zzz = 1": ["config.init.zzz is unknown", "accepted here are"],
    'config.init.drop = "logit"': ["'drop'", "tuple"],
    'config.init.update({"drop": ["("]})': ["config.init.drop[0]", "no regular expression"],
    'config.model.preprocess.resize = "squish"': ["config.model.preprocess.resize", "squash"],
    'config.model.preprocess.rezise = "squash"': ["preprocess.rezise is unknown", "'resize'"],
    "config.model.logit_scale.init = 0": ["config.model.logit_scale.init = 0"],
    "config.model.tokeniser.model = 'x'": ["line 7", "tokeniser", "tokenizer"],
    "config.model.image_size = 225": ["config.model.image_size = 225", "patch_size = 32", "224"],
    'config.model.image_size, config.model.name = 384, "ViT-L-14"': ["= 384", "378 or 392"],
    "config.optimizer.lr_scale = ('a', 0.1)": ["lr_scale[0] = 'a'", "pair"],
    'config.loss.name = "siglip"': ["config.model.logit_bias", "config.model.logit_scale", "10"],
    'config.model.name = "ViT-B32"': ["nearest are ViT-B-32, ", "`clipjax models`"],
    'config.evals.z = {"name": "zero_shot", "source": "synthetic:8", "max_bda": 1}': [
        "config.evals.z.max_bda",
        "'max_bad'",
        "its fields are name, source, every_steps, templates",
    ],
    'config.evals.z = {"name": "zero_shot", "source": "synthetic:8", "batch_size": 0}': [
        "config.evals.z.batch_size = 0",
    ],
    'config.data.transforms = ({"name": "random_flip", "probability": 2},)': [
        "config.data.transforms[0]",
        "probability",
    ],
    'config.data.transforms = ({"name": "random_flip", "probabilty": 1},)': [
        "config.data.transforms[0].probabilty",
        "'probability'",
    ],
    'config.data.transforms = "random_flip"': ["transforms", "tuple"],
}
# Of the command line -> words of the message.
FLAGS = {
    "--config.batch_sise=64": ["config.batch_sise is unknown", "Did you mean 'batch_size'"],
    "--config.optimizer.zzz=1": ["config.optimizer.zzz is unknown", "b1, b2, clip_norm"],
    "--config.optimizer.clip_norm=-1": ["config.optimizer.clip_norm = -1.0", "None (off)"],
    "--config.optimizer.clip_norm=0": ["config.optimizer.clip_norm = 0.0", "None (off)"],
    "--config.optimizer.b2=1": ["config.optimizer.b2 = 1.0", "[0, 1)"],
    "--config.optimizer.learning_rate=nan": ["config.optimizer.learning_rate = nan"],
    "--config.optimizer.learning_rate=None": ["config.optimizer.learning_rate = None"],
    "--config.hang_timeout_s=inf": ["config.hang_timeout_s = inf", "None (off)"],
    "--config.report=3": ["--config.report=3", "neither true nor false"],
    "--config.resume=gs://bucket/run": ["gs://bucket/run is in a bucket", "config.resume"],
    "--config.model.logit_scale.max=2": ["config.model.logit_scale.init", "is above", "= 2"],
    "--config.max_skipped_in_a_row=0": ["config.max_skipped_in_a_row = 0"],
    "--config.schedule.warmup_steps=-5": ["config.schedule.warmup_steps = -5"],
    "--config.evals.zero_shot.every_steps=-1": ["config.evals.zero_shot.every_steps = -1"],
    "--config.evals.zero_shot.every_steps=x": ["config.evals.zero_shot.every_steps=x", "whole"],
    "--config.evals.zero_shot.zzz=1": ["zero_shot.zzz", "name, source, every_steps, templates"],
    "--config.evals.zero_shot.classes=some": ["config.evals.zero_shot.classes = 'some'", "present"],
    "--config.model.image_size=32,16": ["image_size=32,16", "square"],
    "--config.model.image_size=36": ["config.model.image_size = 36", "32 or 40"],
    "--config.model.text.dropout=1": ["config.model.text.dropout = 1", "[0, 1)"],
    "--config.model.image.widht=3": ["config.model.image.widht", "Did you mean 'width'"],
    "--config.model.imag.width=3": ["config.model.imag is unknown", "Did you mean 'image'"],
    "--config.model.tokenizer.modle=x": ["config.model.tokenizer.modle"],
    "--config.model.logit_scale.init=0": ["config.model.logit_scale.init = 0"],
    "--config.model.preprocess.std=(0,0,0)": ["config.model.preprocess.std[0] = 0"],
    "--config.model.image.name=vitt": ["config.model.image.name = 'vitt'", "'vit'"],
    "--config.loss.name=siglip": ["config.model.logit_bias"],
    "--config.stages=({'until_step':4,'image_size':(16,8)},)": [
        "config.stages[0].image_size = [16, 8]",
        "square",
    ],
}
ACCEPTED = (
    "--config.optimizer.clip_norm=None",
    "--config.hang_timeout_s=None",
    "--config.loss.name=siglip",
    "--config.model.logit_bias=-10.0",
    "--config.model.logit_scale.max=None",
    "--config.model.preprocess.resize=squash",
    "--config.model.text.vocab_size=50000",
    "--config.model.tokenizer.end_token=<end>",
    "--config.evals.zero_shot.max_bad=3",
)


@pytest.fixture(scope="module")
def told(clipjax, tmp_path_factory):
    """line of the file, or flag -> (exit code, output); the file's default config, or smoke.py."""
    folder = tmp_path_factory.mktemp("configs")
    commands = {}
    for number, line in enumerate(LINES):
        file = folder / f"config_{number}.py"
        file.write_text(FILE.replace("LINE", line))
        commands[line] = ["--config", file]
    for flag in FLAGS:
        commands[flag] = ["--config", "configs/smoke.py", flag]
    commands["accepted"] = ["--config", "configs/smoke.py", *ACCEPTED]
    row = folder / "row.py"
    row.write_text(FILE.replace("LINE", 'config.model.preprocess.resize = "squash"'))
    flags = (
        "--config.batch_size=32",
        "--config.dtype=float32",
        "--config.model.tokenizer.start_token=<start>",
    )
    commands["row"] = ["--config", row, *flags]
    argvs = [
        ["clipjax", "train", *map(str, args), f"--workdir={folder}/run"]
        for args in commands.values()
    ]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("many_commands.py")],
        input=json.dumps(argvs),
        env=clipjax.env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(commands, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("given", [*LINES, *FLAGS])
def test_a_wrong_field_is_one_sentence(told, given):
    code, output = told[given]
    assert code == 1, output
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("clipjax train: "), output
    for word in (LINES | FLAGS)[given]:
        assert word in last, output


def test_fields_of_the_model_and_none_by_flag(told):
    code, output = told["accepted"]
    assert code == 0, output
    metadata = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    config, contract = metadata["config"], metadata["contract"]
    assert config["optimizer"]["clip_norm"] is None
    assert config["hang_timeout_s"] is None and metadata["hang_timeout_s"] is None
    assert contract["model"]["logit_bias"] == -10 and contract["logit_scale"]["max"] is None
    assert contract["preprocess"]["resize"] == "squash"
    assert contract["model"]["text"]["vocab_size"] == 50000
    assert contract["model"]["tokenizer"]["end_token"] == "<end>"
    assert config["evals"]["zero_shot"]["max_bad"] == 3
    assert {} not in metadata["config"]["model"].values()
    # The row's field, of a config that names the row alone, and a flag's in place of it.
    code, output = told["row"]
    assert code == 0, output
    metadata = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    # Groups that only make room for fields are not stored: workdirs of before hold none.
    assert metadata["config"]["model"] == {
        "name": "ViT-B-32",
        "image_size": None,
        "image": {"patch_dropout": 0.0},
        "text": {"context_length": None},
        "preprocess": {"resize": "squash"},
        "tokenizer": {"start_token": "<start>"},
    }
    contract = metadata["contract"]
    assert contract["preprocess"]["resize"] == "squash" and contract["model"]["embed_dim"] == 512
    assert contract["model"]["tokenizer"]["start_token"] == "<start>"
