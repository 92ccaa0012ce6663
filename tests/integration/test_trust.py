"""Nothing that a run shows or writes holds a credential, nor a character that deceives."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

# Puts a folder into a bucket of this process, then runs the command, as a person would who keeps
# data behind `user:secret@`. `off` takes the redaction away.
IN_A_BUCKET = """
import pathlib, re, sys
import fsspec
from clipjax import redaction
from clipjax.cli.main import run
folder, place, off, *arguments = sys.argv[1:]
for path in pathlib.Path(folder).rglob("*"):
    if path.is_file():
        where = f"memory://{place}/{path.relative_to(folder)}"
        fsspec.filesystem("memory").pipe_file(where, path.read_bytes())
if off == "off":
    for name in ("USER_INFO", "HEADER", "NAME", "ENTRY", "LINE"):
        setattr(redaction, name, re.compile("(?!)(.)"))
run(["clipjax", *arguments])
"""
MAX_BAD = "--max_bad_fraction=0.9"
CANARIES = ("CANARY1", "CANARY2", "CANARY3")
# What a key of the environment would be: it is never asked for, and never written.
ENVIRONMENT = dict.fromkeys(("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"), "CANARY3")
CLASSES = ("cat\x1b[31m", "dog\u202egod", "漢字 ❤\ufe0f")
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")


def write_classes(folder):
    """Class folders with names from the web; one picture does not decode."""
    for number, name in enumerate(CLASSES):
        (folder / "classes" / name).mkdir(parents=True)
        for picture in range(12):
            image = Image.fromarray(np.full((8, 8, 3), 20 * picture + number, np.uint8))
            image.save(folder / "classes" / name / f"{picture}\x1b[2J.png")
    (folder / "classes" / CLASSES[0] / "x\x1b[2J.png").write_bytes(b"no picture")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_classes(folder)
    return folder


class Person:
    """Runs commands with the data in a bucket, and keeps what they said."""

    def __init__(self, clipjax, folder, home):
        self.clipjax, self.folder, self.home, self.said = clipjax, folder, home, []

    def __call__(self, *arguments, secret="CANARY1", off="", check=0):
        command = [sys.executable, "-c", IN_A_BUCKET, self.folder, f"user:{secret}@host", off]
        env = {**ENVIRONMENT, "CLIPJAX_CACHE": str(self.home / "cache")}
        spec = f"folder:memory://user:{secret}@host/classes"
        done = self.clipjax(
            *(str(argument).replace("SPEC", spec) for argument in arguments),
            command=list(map(str, command)),
            env=env,
            check=check,
        )
        self.said.append(done.stdout + done.stderr)
        return done

    def train(self, **options):
        (self.home / "config.py").write_text(CONFIG)
        config = f"--config={self.home}/config.py"
        return self("train", config, *SOURCES, f"--workdir={self.home}/run", **options)


def found_in(home, words):
    """(word, file) wherever one of the words stands in a file below, or in its name."""
    files = [path for path in home.rglob("*") if path.is_file()]
    assert files
    return [
        (word, str(path.relative_to(home)))
        for path in files
        for word in words
        if word.encode() in path.read_bytes() or word in str(path.relative_to(home))
    ]


CONFIG = """
from configs import smoke
def get_config(arg=None):
    config = smoke.get_config("steps=2")
    config.evals.zero_shot.max_bad = 1
    config.data.max_bad_fraction = 0.9
    return config
"""
SOURCES = ("--config.data.source=SPEC", "--config.evals.zero_shot.source=SPEC")


@pytest.fixture(scope="module")
def person(clipjax, folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    person = Person(clipjax, folder, home)
    person.train()
    return person


def test_a_run_writes_no_credential(person):
    manifest = json.loads((person.home / "run/checkpoints/2/manifest.json").read_text())
    spec = "folder:memory://[redacted]@host/classes"
    assert manifest["config"]["data"]["source"] == spec
    assert spec in (person.home / "run/report.html").read_text()
    assert "zero_shot/folder_memory_redacted_host_classes/top1" in person.said[0]
    assert found_in(person.home, CANARIES) == []
    assert not any(word in person.said[0] for word in CANARIES)


@pytest.mark.slow
def test_a_new_credential_is_no_other_config(person):
    done = person.train(secret="CANARY2")
    assert "restored step 2" in done.stderr
    # A checkpoint from before there was redaction holds the old one.
    path = person.home / "run/checkpoints/2/manifest.json"
    written = path.read_bytes()
    from clipjax.checkpoint.manifest import Manifest, read_manifest
    from clipjax.checkpoint.resume import check_resume

    manifest = read_manifest(path.parent)
    config = json.loads(json.dumps(manifest.config).replace("[redacted]", "user:CANARY1"))
    config["optimizer"]["api_token"] = "CANARY1"
    fields = ("contract", "dataset_fingerprint", "global_batch_size", "seed")
    old = Manifest(**{**vars(manifest), "config": config})
    new = {"config": json.loads(json.dumps(config).replace("CANARY1", "CANARY2"))}
    check_resume(old, new | {name: getattr(manifest, name) for name in fields})
    new["config"]["optimizer"]["learning_rate"] = 1
    with pytest.raises(ValueError, match="learning_rate") as refusal:
        check_resume(old, new | {name: getattr(manifest, name) for name in fields})
    assert "CANARY" not in str(refusal.value) and path.read_bytes() == written


@pytest.mark.slow
def test_verbs_that_open_the_checkpoint_say_and_write_none(person):
    checkpoint, out = f"--checkpoint={person.home}/run", person.home / "scores.parquet"
    for code, words, arguments in (
        (1, r"\x1b[2J.png", ("eval", checkpoint, "--zero_shot=SPEC")),
        (1, "memory://[redacted]@host/classes-none", ("eval", checkpoint, "--retrieval=SPEC-none")),
        (1, "s3://[redacted]@b/x", ("eval", "--checkpoint=s3://u:CANARY2@b/x", "--retrieval=SPEC")),
        (0, "scores; use", ("data", "score", "SPEC", checkpoint, f"--out={out}")),
        (0, "36 examples in 1 shards", ("data", "pack", "--from=SPEC", f"--to={out}.d", MAX_BAD)),
    ):
        done = person(*arguments, check=code)
        assert words in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not any(word in "".join(person.said) for word in CANARIES)
    assert found_in(person.home, CANARIES) == []


def test_names_from_the_web_reach_neither_page_nor_terminal(person):
    page = (person.home / "run/report.html").read_text()
    assert not RAW.search(page)
    assert r"cat\x1b[31m" in page and r"dog\u202egod" in page and CLASSES[2] in page
    assert not any(RAW.search(said) for said in person.said)
