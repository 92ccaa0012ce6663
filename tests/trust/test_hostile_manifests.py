"""A manifest that somebody bent, signed again: one sentence from every verb, whatever it says."""

import copy
import json
import os
import random
import re
import shutil
import types
from pathlib import Path

import pytest

from clipjax.checkpoint import DamagedCheckpointError, check_model
from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint.manifest import Manifest
from clipjax.models import leaf_shapes

VERBS = ("classify", "eval", "convert", "finetune")


class _Leaves(types.SimpleNamespace):
    """A manifest of which only the leaves are asked."""

    roots, model_root, averages = Manifest.roots, Manifest.model_root, Manifest.averages
    root_of, of_model = Manifest.root_of, Manifest.of_model


def put(*path):
    """Sets a field: the last argument is the value."""
    *keys, last, value = path

    def change(fields):
        node = fields
        for key in keys:
            node = node[key]
        node[last] = value

    return change


def drop(*path):
    def change(fields):
        node = fields
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return change


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


MODEL = ("contract", "model")

# name -> (what was done to the manifest, what the message says)
BENT = {
    "no object": (lambda fields: [1], "expected an object"),
    "unknown field": (put("sharding", 1), "sharding is unknown.*newer clipjax"),
    "unknown field of a leaf": (put("leaves", 0, "crc", 1), r"leaves\[0\].crc .*newer clipjax"),
    "unknown field of a file": (put("files", 0, "crc", 1), r"files\[0\].crc .*newer clipjax"),
    "unknown group": (put("contract", "audio", {}), "contract.audio .*newer clipjax"),
    "unknown model field": (put(*MODEL, "audio", {}), "model.audio .*newer clipjax"),
    "unknown preprocess": (put("contract", "preprocess", "crop", 1), "preprocess.crop .*newer"),
    "unknown tower field": (put(*MODEL, "image", "gating", 1), "gating.*newer clipjax"),
    "unknown tower": (put(*MODEL, "text", "name", "mamba"), "'mamba'"),
    "unknown tokenizer": (put(*MODEL, "tokenizer", {"name": "x"}), "'x'"),
    "unknown tokenizer field": (put(*MODEL, "tokenizer", "speed", 1), "speed.*newer clipjax"),
    "newer format": (put("format_version", 2), "format version 2"),
    "format no number": (put("format_version", [1]), "format version"),
    "step text": (put("step", "1"), "step = '1'"),
    "step negative": (put("step", -1), "step = -1"),
    "step huge": (put("step", 2**70), "step = "),
    "config list": (put("config", []), "config = "),
    "evals list": (put("config", "evals", [1]), "config.evals"),
    "evals of numbers": (put("config", "evals", {"a": 3}), "config.evals"),
    "contract null": (put("contract", None), "contract = None"),
    "versions list": (put("versions", ["0.1"]), "versions = "),
    "versions of lists": (put("versions", {"jax": [1]}), "versions.jax"),
    "no leaves": (drop("leaves"), "leaves is missing"),
    "leaves map": (put("leaves", {}), "leaves = "),
    "leaf a number": (put("leaves", 0, 7), r"leaves\[0\] = 7"),
    "leaf without a shape": (drop("leaves", 0, "shape"), r"leaves\[0\].shape"),
    "leaf name a number": (put("leaves", 0, "name", 5), r"leaves\[0\].name"),
    "leaf name leads out": (put("leaves", 0, "name", "params/../../x"), "leads outside"),
    "leaf twice": (lambda f: f["leaves"].append(f["leaves"][0]), "stands twice"),
    "leaf shape text": (put("leaves", 0, "shape", ["a"]), r"shape\[0\]"),
    "leaf shape negative": (put("leaves", 0, "shape", [-1, 2]), r"shape\[0\] = -1"),
    "leaf shape huge": (put("leaves", 0, "shape", [2**40, 2**40]), "so many"),
    "leaf dtype": (put("leaves", 0, "dtype", "object"), "'object'"),
    "file absolute": (put("files", 0, "path", "/etc/passwd"), "outside its folder"),
    "file above": (put("files", 0, "path", "../x"), "outside its folder"),
    "file backslash": (put("files", 0, "path", "a\\..\\x"), "outside its folder"),
    "file NUL": (put("files", 0, "path", "a\0b"), "outside its folder"),
    "file drive": (put("files", 0, "path", "C:x"), "outside its folder"),
    "file size": (put("files", 0, "size", "many"), "size = 'many'"),
    "file digest": (put("files", 0, "sha256", 3), "sha256 = 3"),
    "embed_dim text": (put(*MODEL, "embed_dim", "x"), "embed_dim = 'x'"),
    "image a list": (put(*MODEL, "image", []), "model.image = "),
    "text absent": (drop(*MODEL, "text"), "lacks text"),
    "tokenizer text": (put(*MODEL, "tokenizer", "clip_bpe"), "model.tokenizer = "),
    "identity a list": (put("contract", "tokenizer", []), "contract.tokenizer"),
    "no model": (drop("contract", "model"), "contract.model"),
    "preprocess null": (put("contract", "preprocess", None), "contract.preprocess"),
    "mean of texts": (put("contract", "preprocess", "mean", ["a", "b", "c"]), "mean"),
    "std of zeros": (put("contract", "preprocess", "std", [0, 0, 0]), "std"),
    "depth negative": (put(*MODEL, "image", "depth", -3), "depth = -3"),
    "depth huge": (put(*MODEL, "image", "depth", 10**9), "depth = 1000000000"),
    "width text": (put(*MODEL, "text", "width", "wide"), "width = 'wide'"),
    "pooling a list": (put(*MODEL, "image", "pooling", [1]), "pooling"),
    "image_size negative": (put(*MODEL, "image_size", -16), "image_size = -16"),
    "image_size huge": (put(*MODEL, "image_size", 10**12), "image_size = 1000000000000"),
    "image_size large": (put(*MODEL, "image_size", 65536), "too large"),
    "image_size another": (put(*MODEL, "image_size", 32), "does not hold the model"),
    "context huge": (put(*MODEL, "text", "context_length", 2**24), "too long"),
    "vocabulary another": (put(*MODEL, "text", "vocab_size", 10), "does not hold the model"),
    "another depth": (put(*MODEL, "image", "depth", 2), "does not hold the model"),
    "patch zero": (put(*MODEL, "image", "patch_size", 0), "patch_size = 0"),
    "activation a map": (put(*MODEL, "image", "activation", {"a": 1}), "activation"),
    "cleaning a number": (put(*MODEL, "tokenizer", {"name": "wordpiece", "cleaning": 3}), "clean"),
    "scale text": (put("contract", "logit_scale", "init", "warm"), "logit_scale.init"),
    "bias a list": (put(*MODEL, "logit_bias", []), "logit_bias"),
    "templates a number": (put("config", "evals", {"a": {"templates": 5}}), "templates = 5"),
    "templates of numbers": (put("config", "evals", {"a": {"templates": [5]}}), "templates = "),
    "too deep": (put("config", "x", nested(200)), "levels deep"),
    "deep": (put("contract", "model", "x", nested(100)), "levels deep"),
}


def one_sentence(done, words):
    assert done.code == 1, (done.code, done.err)
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.err.rstrip("\n").isprintable(), repr(done.err)
    assert re.search(words, done.err), done.err


@pytest.mark.parametrize("name", BENT)
def test_bent_manifests(name, command, workdir, picture, tmp_path, kit):
    change, words = BENT[name]
    kit.rewrite(workdir / "checkpoints" / "1", copy.deepcopy(change))
    verbs = VERBS if name in ("unknown field", "embed_dim text", "file above") else VERBS[:1]
    for verb in verbs:
        done = command(*kit.verbs(workdir, picture, tmp_path)[verb])
        one_sentence(done, words)
        assert not (tmp_path / "converted").exists()


TEXTS = {
    "empty": (lambda text: b"", "not a manifest"),
    "no JSON": (lambda text: b"hello", "not a manifest"),
    "not UTF-8": (lambda text: b'{"a": "\xff"}', "not a manifest"),
    "key twice": (lambda text: text[:-1].encode() + b', "seed": 1}', "'seed' stands twice"),
    "NaN": (lambda text: text.replace('"seed": 0', '"seed": NaN').encode(), "NaN is no number"),
    "infinity": (lambda text: text.replace('"seed": 0', '"seed": 1e999').encode(), "too large"),
    "digits": (lambda t: t.replace('"seed": 0', f'"seed": {"9" * 5000}').encode(), "5000 digits"),
    "bottomless": (lambda text: b"[" * 1_000_000, "levels deep"),
    "another digest": (lambda text: text.replace('"step": 1', '"step": 2').encode(), "SHA-256"),
    "large": (lambda text: text.encode() + b" " * (64 * 2**20), "larger than"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_no_manifest(name, command, workdir, picture, tmp_path, kit):
    change, words = TEXTS[name]
    path = workdir / "checkpoints" / "1" / "manifest.json"
    text = json.dumps(json.loads(path.read_text()))
    changed = change(text)
    assert changed != text.encode()
    path.write_bytes(changed)
    one_sentence(command(*kit.verbs(workdir, picture, tmp_path)["classify"]), words)


@pytest.mark.parametrize("verb", VERBS)
def test_links_and_pipes_in_a_checkpoint(verb, command, workdir, picture, tmp_path, kit):
    step_dir = workdir / "checkpoints" / "1"
    secret = tmp_path / "secret"
    secret.write_text("secret")
    arguments = kit.verbs(workdir, picture, tmp_path)[verb]
    for place in ("tokenizer", "state/more", "state/_METADATA", "manifest.json"):
        path, kept = step_dir / place, None
        if path.exists():
            kept = path.rename(tmp_path / "kept")
        path.symlink_to(kept or secret)
        done = command(*arguments)
        one_sentence(done, f"{place} is a symbolic link")
        assert "secret" not in done.err
        path.unlink()
        if kept:
            kept.rename(path)
    os.mkfifo(step_dir / "pipe")
    one_sentence(command(*arguments), "neither a file nor a folder")


def test_arrays_that_are_not_what_the_manifest_says(command, workdir, picture, tmp_path, kit):
    """The files are signed as well, and hold something else."""
    step_dir = workdir / "checkpoints" / "1"
    arguments = kit.verbs(workdir, picture, tmp_path)["classify"]
    metadata = step_dir / "state" / "_METADATA"
    for text in (
        "",
        "[]",
        "{}",
        '{"tree_metadata": 3}',
        '{"a":' * 100_000,
        '{"tree_metadata": {"a": 1}}',
        metadata.read_text().replace('"params"', '"others"'),
    ):
        metadata.write_text(text)
        records = [
            {"path": r.path, "size": r.size, "sha256": r.sha256}
            for r in manifests.record_files(step_dir)
        ]
        kit.rewrite(step_dir, put("files", records))
        one_sentence(command(*arguments), "state")


def test_a_model_is_compared_with_its_leaves_however_they_lie(kit):
    stacked = leaf_shapes(kit.spec)
    unrolled = {name.replace("/blocks/", "/block_0/"): s[1:] for name, s in stacked.items()}
    unrolled = {n: unrolled[n] if "/block_0/" in n else stacked[n] for n in unrolled}
    assert unrolled.keys() != stacked.keys()

    def check(shapes, root="params"):
        names = {name.replace("params/", f"{root}/", 1): shape for name, shape in shapes.items()}
        leaves = [
            manifests.LeafRecord(name, shape, "float32", None) for name, shape in names.items()
        ]
        check_model(Path("x"), _Leaves(leaves=leaves), kit.spec)

    for shapes in (stacked, unrolled):
        check(shapes)
        check(shapes, root="ema_params")
        name = next(iter(shapes))
        for bent in ({**shapes, name: (1, 2, 3)}, {**shapes, "params/more": ()}):
            with pytest.raises(DamagedCheckpointError, match="does not hold the model"):
                check(bent)


POOL = (
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 2**80, -(2**40), 0.5, -1e-9, 1e300, "", "x", "1"),
    *(
        "../x",
        "/etc/passwd",
        "a\\b",
        "a\0b",
        "os:system",
        "clip_bpe",
        "\ud800",
        "\x1b[31m",
        "é" * 999,
    ),
    *([], [1], ["a"], [[]], {}, {"name": "os:system"}, {"a": {"b": 1}}, nested(70), [0] * 1000),
)


def places(node, path=()):
    """Every place of a JSON value."""
    inner = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in inner:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def bend(fields, rng):
    """Changes, drops or adds one to three things."""
    for _ in range(rng.randint(1, 3)):
        *path, last = rng.choice(list(places(fields)))
        node = fields
        for key in path:
            node = node[key]
        what = rng.random()
        if what < 0.6:
            node[last] = copy.deepcopy(rng.choice(POOL))
        elif what < 0.8:
            del node[last]
        elif isinstance(node, dict):
            node[rng.choice(["x", "", "name", "model", "a.b", "\0"])] = rng.choice(POOL)
        else:
            node.append(copy.deepcopy(rng.choice(POOL)))


@pytest.mark.nightly
@pytest.mark.parametrize("verb", VERBS)
def test_a_campaign_of_bent_manifests(verb, command, original, picture, tmp_path, kit, monkeypatch):
    """250 a verb: refused by one sentence, or taken; never a traceback, never anything run."""
    from clipjax import evaluate, train
    from clipjax.inference import Model

    # What follows the opening is other tests'; and a bent manifest may well be harmless.
    monkeypatch.setattr(Model, "classify", lambda self, images, labels, *_, **__: [[]])
    monkeypatch.setattr(evaluate, "run_evals", lambda evals, params: [])
    monkeypatch.setattr(train, "train", lambda experiment: None)
    canary = tmp_path / "canary"
    monkeypatch.setattr(os, "system", lambda command: canary.touch())
    rng, codes = random.Random(7), []
    for number in range(250):
        workdir = shutil.copytree(original, tmp_path / "bent")
        kit.rewrite(workdir / "checkpoints" / "1", lambda fields: bend(fields, rng))
        done = command(*kit.verbs(workdir, picture, tmp_path)[verb])
        codes.append(done.code)
        if done.code:
            assert done.code == 1, (number, done)
            assert "Traceback" not in done.err
            said = f"clipjax {'train' if verb == 'finetune' else verb}: "
            lines = done.err.splitlines()  # train logs damage as an error
            assert any(x.startswith(said) or " ERROR " in x for x in lines), done.err
        assert not canary.exists()
        for name in ("bent", "converted", "tuned"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert 0 in codes
    assert codes.count(1) > 100
